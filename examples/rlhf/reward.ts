/**
 * Stage 2: answers of the fine-tuned model, ranked by the rule or by a person, and a reward model that
 * learns from the ranks.
 */

import { manualSeed } from "@graft/ml";
import type { Tokenizer } from "@graft/ml/data";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW, linearSchedule } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import { type RankedAnswers, rankingLoss, RewardModel, sampleAnswers } from "@graft/ml/rlhf";
import { writeWhole } from "../charts.ts";
import { readMetrics as readLines } from "../log.ts";
import { CAPACITY, ROOM } from "./measure.ts";
import { sentiment } from "./sentiment.ts";
import {
  clippedStep,
  type Figures,
  finite,
  type Host,
  isThere,
  runSteps,
  Stopped,
} from "./stage.ts";
import { ANSWER, END, type Texts } from "./texts.ts";

/** Answers to a prompt, K. */
const K = 4;
/** Prompts that are answered together. */
const TOGETHER = 16;

/** A line of `answers.jsonl`. */
export interface Answered {
  /** What a ranking calls it. */
  readonly id: string;
  /** The prompt as text, for a person. */
  readonly prompt: string;
  /** The answers as text, for a person. */
  readonly answers: readonly string[];
  /** The prompt's tokens. */
  readonly promptTokens: readonly number[];
  /** The answers' tokens. */
  readonly tokens: readonly (readonly number[])[];
}

/** Samples K answers to each prompt into `path`; goes on where a run before was stopped. */
export async function sampleRanked(
  sft: string,
  path: string,
  texts: Texts,
  tokenizer: Tokenizer,
  seed: number,
  host: Host,
): Promise<Answered[]> {
  const lines = await isThere(path) ? await readLines(path) as unknown as Answered[] : [];
  // What was cut off in the middle of a batch is sampled again.
  const done = lines.slice(0, Math.floor(lines.length / TOGETHER) * TOGETHER);
  if (lines.length === texts.ranked.length) return lines;
  const model = await LlamaForCausalLM.fromPretrained(sft);
  const cache = model.createCache(TOGETHER * K, CAPACITY);
  while (done.length < texts.ranked.length) {
    if (host.stopped()) throw new Stopped(`sampling stopped after ${done.length} prompts`);
    host.log.note(`sampling answers to rank: ${done.length} of ${texts.ranked.length} prompts`);
    const at = done.length;
    // The last prompts again, where they do not fill a batch: it keeps its shape.
    const prompts = Array.from(
      { length: TOGETHER * K },
      (_, i) => texts.ranked[Math.min(at + Math.floor(i / K), texts.ranked.length - 1)].prompt,
    );
    const answers = await sampleAnswers(model, prompts, {
      maxTokens: ANSWER,
      stopTokens: [END],
      generator: seed + 1000 + at,
      cache,
    });
    texts.ranked.slice(at, at + TOGETHER).forEach(({ prompt }, p) => {
      const own = answers.slice(p * K, (p + 1) * K);
      done.push({
        id: `prompt-${at + p}`,
        prompt: tokenizer.decode(prompt),
        answers: own.map(({ tokens }) => tokenizer.decode(tokens)),
        promptTokens: prompt,
        tokens: own.map(({ tokens }) => tokens),
      });
    });
    await writeWhole(path, done.map((line) => `${JSON.stringify(line)}\n`).join(""));
  }
  cache.dispose();
  return done;
}

/** The rule's ranks: 0 for the most cheerful; equal ones tie. */
export function rankedByRule({ answers }: Answered): number[] {
  const scores = answers.map(sentiment);
  return scores.map((score) => scores.filter((other) => other > score).length);
}

/** Settings of the stage. */
export interface RewardSettings {
  /** Times that the ranked answers are gone through. */
  readonly rewardEpochs: number;
  /** Decides every random choice. */
  readonly seed: number;
}

/** Prompts in a step. */
const BATCH = 8;

/**
 * Trains a reward model on ranked answers, with the last eighth of the prompts held out, and writes it
 * into `folder`; gives the share of held-out pairs it ranks right.
 */
export async function trainReward(
  sft: string,
  folder: string,
  groups: readonly RankedAnswers[],
  texts: Texts,
  settings: RewardSettings,
  host: Host,
): Promise<Figures> {
  const { rewardEpochs: epochs, seed } = settings;
  const useful = groups.filter(({ ranks }) => new Set(ranks).size > 1); // the others have no pair
  const heldOut = useful.slice(-Math.max(1, Math.floor(useful.length / 8)));
  const train = useful.slice(0, -heldOut.length);
  if (train.length < BATCH) {
    throw new Error(
      `the reward model needs ${BATCH} prompts whose answers differ in rank, beside those held out; ` +
        `there are ${train.length}: rank more`,
    );
  }
  const each = Math.floor(train.length / BATCH), steps = each * epochs;
  manualSeed(seed + 1);
  const reward = await RewardModel.fromPretrained(sft);
  inject(reward.model, {
    r: 16,
    lora_alpha: 32,
    target_modules: "all-linear",
    task_type: "SEQ_CLS",
  });
  const optimizer = new AdamW(reward.trainable(), { lr: 1e-3, weightDecay: 0 });
  const schedule = linearSchedule(steps, { warmup: Math.min(5, steps - 1) });
  let accuracy = NaN;
  const evaluate = async (): Promise<Figures> => {
    accuracy = await accuracyOf(reward, heldOut);
    return { eval_accuracy: accuracy };
  };
  await runSteps<{ accuracy: number }>({
    name: "reward model",
    folder,
    steps,
    parameters: new Map(reward.namedParameters().filter(([, p]) => p.requiresGrad)),
    optimizer,
    begin: evaluate,
    async step(number: number): Promise<Figures> {
      const at = ((number - 1) % each) * BATCH;
      reward.train();
      const { loss, accuracy, margin, mean_reward, min_reward, max_reward } = rankingLoss(
        reward,
        train.slice(at, at + BATCH),
        { width: ROOM.total },
      );
      loss.backward();
      optimizer.lr = 1e-3 * schedule(number - 1);
      const grad_norm = await clippedStep(optimizer);
      reward.eval();
      return {
        ...await finite({
          loss,
          accuracy,
          margin,
          mean_reward,
          min_reward,
          max_reward,
          grad_norm,
        }),
        ...number % each === 0 ? await evaluate() : {},
      };
    },
    state: () => ({ accuracy }),
    load: (state) => accuracy = state.accuracy,
  }, host);
  await reward.normalize(texts.heldOut.map(({ prompt, rest }) => [...prompt, ...rest]));
  await reward.savePretrained(folder);
  return { accuracy, prompts: useful.length };
}

/** Share of the pairs of which the better answer scores higher. */
async function accuracyOf(reward: RewardModel, groups: readonly RankedAnswers[]): Promise<number> {
  let right = 0, pairs = 0;
  for (const { prompt, answers, ranks } of groups) {
    const rows = answers.map((tokens) => ({ prompt, tokens, ended: true }));
    const scores = await reward.reward(rows);
    scores.forEach((a, i) =>
      scores.forEach((b, j) => {
        if (ranks![i] >= ranks![j]) return;
        pairs++;
        if (a > b) right++;
      })
    );
  }
  return right / pairs;
}

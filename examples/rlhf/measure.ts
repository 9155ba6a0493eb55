/**
 * What every policy is measured by: the rule's score on prompts that nothing was trained on, the KL to
 * where it started, and the loss on general text.
 */

import { flush, noGrad, read, type Tensor } from "@graft/ml";
import { DataLoader, type Dataset, type Tokenizer } from "@graft/ml/data";
import { type CausalLM, LlamaForCausalLM } from "@graft/ml/nn";
import {
  type Answer,
  type BestOfN,
  bestOfN,
  klOf,
  measureAnswers,
  type Reward,
  sampleAnswers,
} from "@graft/ml/rlhf";
import { sentiment } from "./sentiment.ts";
import type { Figures, Host } from "./stage.ts";
import { ANSWER, END, PROMPT, type Texts } from "./texts.ts";

/** Room in the tensors of a batch of answers. */
export const ROOM: { readonly total: number; readonly answer: number } = {
  total: PROMPT + ANSWER,
  answer: ANSWER,
};

/** Positions of a cache for one prompt and its answer: prompts come in sixteens. */
export const CAPACITY: number = 16 + ANSWER;

/** How a policy does. */
export interface PolicyFigures {
  /** Mean of the rule's scores. */
  readonly rule: number;
  /** Their standard deviation. */
  readonly rule_std: number;
  /** Mean KL to the reference, in nats an answer. */
  readonly kl: number;
  /** Loss on general text, in nats a token. */
  readonly general_loss: number;
}

/** The rule's score of each answer. */
export function ruleScores(answers: readonly Answer[], tokenizer: Tokenizer): number[] {
  return answers.map(({ tokens }) => sentiment(tokenizer.decode(tokens)));
}

/** Samples an answer to each held-out prompt, always with the same draws, and measures the policy. */
export async function measurePolicy(
  model: CausalLM,
  texts: Texts,
  tokenizer: Tokenizer,
): Promise<PolicyFigures & { answers: Answer[] }> {
  const prompts = texts.heldOut.map(({ prompt }) => prompt);
  const answers = await sampleAnswers(model, prompts, {
    maxTokens: ANSWER,
    stopTokens: [END],
    generator: 99,
  });
  const rollouts = await measureAnswers(model, answers, { batch: 32, room: ROOM });
  const scores = ruleScores(answers, tokenizer);
  const rule = mean(scores);
  return {
    rule,
    rule_std: Math.sqrt(mean(scores.map((s) => (s - rule) ** 2))),
    kl: mean(rollouts.map(klOf)),
    general_loss: await meanLoss(model, texts.generalHeldOut),
    answers,
  };
}

/** Answers of which best-of-n takes the best. */
const N = 4;
/** Prompts that are answered together. */
const TOGETHER = 16;

/**
 * The baseline: what the reward model does without any training of the policy, by taking the best of a few
 * answers of the model in `sft` to each held-out prompt.
 */
export async function measureBest(
  sft: string,
  reward: Reward,
  texts: Texts,
  tokenizer: Tokenizer,
  { log }: Host,
): Promise<Figures> {
  log.note(`measuring the best of ${N}`);
  const model = await LlamaForCausalLM.fromPretrained(sft);
  const prompts = texts.heldOut.map(({ prompt }) => prompt);
  const best: BestOfN[] = [];
  for (let at = 0; at < prompts.length; at += TOGETHER) {
    best.push(
      ...await bestOfN(model, prompts.slice(at, at + TOGETHER), reward, {
        n: N,
        maxTokens: ANSWER,
        stopTokens: [END],
        generator: 99 + at,
      }),
    );
  }
  return {
    n: N,
    rule: mean(ruleScores(best.map(({ answer }) => answer), tokenizer)),
    reward: mean(best.map(({ score }) => score)),
    kl_bound: Math.log(N) - (N - 1) / N,
  };
}

/** Mean loss a token over all of a dataset. */
export async function meanLoss(model: CausalLM, data: Dataset): Promise<number> {
  const losses: Tensor[] = [], counts: number[] = [];
  model.eval();
  for (const rows of new DataLoader(data, { batchSize: 5, shuffle: false, epochs: 1 })) {
    losses.push(noGrad(() => model.loss(rows)));
    counts.push(rows.targetCount);
    await flush(); // a batch at a time holds memory
  }
  const values = await read(...losses);
  const total = counts.reduce((sum, n) => sum + n, 0);
  return values.reduce((sum, [loss], i) => sum + loss * counts[i], 0) / total;
}

/** The mean. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, x) => sum + x, 0) / values.length;
}

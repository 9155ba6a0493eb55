/**
 * Stage 3: PPO with LoRA against the reward model, without or with the gradients of PPO-ptx.
 */

import { Generator, type GeneratorState, manualSeed } from "@graft/ml";
import { DataLoader, type DataLoaderState, pack, type Tokenizer } from "@graft/ml/data";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject, saveAdapter } from "@graft/ml/peft";
import {
  accumulatePtx,
  AdaptiveKL,
  type KLState,
  makeExperience,
  measureAnswers,
  minibatches,
  ppoBatch,
  type PPOLoss,
  ppoLoss,
  ppoMetrics,
  type Reward,
  sampleAnswers,
  ValueModel,
} from "@graft/ml/rlhf";
import { writeWhole } from "../charts.ts";
import { CAPACITY, mean, measurePolicy, ROOM, ruleScores } from "./measure.ts";
import { clippedStep, type Figures, finite, type Host, runSteps } from "./stage.ts";
import { ANSWER, asDocument, END, ROW, type Texts } from "./texts.ts";

/** Settings of the stage. */
export interface PPOSettings {
  /** Rollouts, each learnt from in 2 epochs of 2 minibatches. */
  readonly ppoSteps: number;
  /** Answers of a rollout, an even number. */
  readonly rollouts: number;
  /** Learning rate. */
  readonly ppoLr: number;
  /** β at the start. */
  readonly beta: number;
  /** The KL that β is steered to, in nats an answer. */
  readonly klTarget: number;
  /** The KL at which the run stops, in nats an answer. */
  readonly klLimit: number;
  /** γ_ptx; 0 for plain PPO. */
  readonly ptx: number;
  /** Decides every random choice. */
  readonly seed: number;
}

const EPOCHS = 2, MINIBATCHES = 2;
/** Steps between two measurements. */
const MEASURE = 4;
/** Answers in which β may change by a fifth. */
const HORIZON = 160;

/** Prompts of which the answers are kept for the report. */
const SHOWN = 5;

/** What `samples.json` holds: answers to the same prompts, before the first step and after the last. */
export interface Samples {
  /** The prompts. */
  readonly prompts: readonly string[];
  /** Answers before the first step. */
  readonly first: readonly string[];
  /** Answers when the policy was measured last. */
  readonly last: readonly string[];
}

/** What a checkpoint holds beside the tensors. */
interface State {
  readonly sampling: GeneratorState;
  readonly order: GeneratorState;
  readonly kl: KLState;
  readonly general: DataLoaderState;
  readonly learnt: DataLoaderState;
  readonly first: Figures;
  readonly last: Figures;
  readonly samples: Samples | null;
}

/** Trains an adapter of the model in `sft` and writes it into `folder`; gives the policy's figures. */
export async function runPPO(
  sft: string,
  folder: string,
  reward: Reward,
  texts: Texts,
  tokenizer: Tokenizer,
  settings: PPOSettings,
  host: Host,
): Promise<Figures> {
  const { ppoSteps: steps, rollouts: size, ptx, seed, klLimit } = settings;
  const model = await LlamaForCausalLM.fromPretrained(sft);
  manualSeed(seed + 2);
  inject(model, { r: 8, lora_alpha: 16, target_modules: "all-linear" });
  const value = new ValueModel(model.config.hidden_size);
  const optimizer = new AdamW([...model.trainable(), ...value.trainable()], {
    lr: settings.ppoLr,
    weightDecay: 0,
  });
  const kl = new AdaptiveKL({
    coefficient: settings.beta,
    target: settings.klTarget,
    horizon: HORIZON,
  });
  const sampling = new Generator(seed + 3), order = new Generator(seed + 4);
  const cache = model.createCache(size, CAPACITY);
  // Eight rows of pretraining text for each row of fine-tuning's are InstructGPT's; here two to one.
  const general = new DataLoader(texts.general, { batchSize: 2, seed });
  const learnt = new DataLoader(pack(texts.learnt.map(asDocument), ROW, 0, { separate: true }), {
    batchSize: 1,
    seed,
  });
  const generalRows = general[Symbol.iterator](), learntRows = learnt[Symbol.iterator]();

  let samples: Samples | null = null;
  const measure = async (): Promise<Figures> => {
    host.log.note("measuring the policy");
    const { answers, ...figures } = await measurePolicy(model, texts, tokenizer);
    const shown = answers.slice(0, SHOWN);
    const prompts = shown.map(({ prompt }) => tokenizer.decode(prompt));
    const written = shown.map(({ tokens }) => tokenizer.decode(tokens));
    host.log.line(`  ${prompts[0]} | ${written[0]}`);
    samples = { prompts, first: samples?.first ?? written, last: written };
    return { ...figures, reward: mean(Array.from(await reward(answers))) };
  };

  const learn = async (number: number): Promise<Figures> => {
    const from = (number - 1) * size;
    const prompts = Array.from(
      { length: size },
      (_, i) => texts.learnt[(from + i) % texts.learnt.length].prompt,
    );
    host.log.note(`PPO ${number}/${steps}: sampling`);
    const answers = await sampleAnswers(model, prompts, {
      maxTokens: ANSWER,
      stopTokens: [END],
      generator: sampling,
      cache,
    });
    const rollouts = await measureAnswers(model, answers, { value, room: ROOM });
    const { rows, metrics } = makeExperience(rollouts, await reward(answers), {
      beta: kl.coefficient,
      missingEndPenalty: 1,
    });
    const seen = metrics["objective/kl"];
    if (!(seen <= klLimit)) {
      throw new Error(`the KL is ${seen.toFixed(2)}, above --kl-limit ${klLimit}`);
    }
    host.log.note(`PPO ${number}/${steps}: learning`);
    model.train();
    const losses: PPOLoss[] = [], figures: Figures[] = [];
    for (const batch of minibatches(rows, size / MINIBATCHES, EPOCHS, order)) {
      const result = ppoLoss(model, value, ppoBatch(batch, ROOM));
      result.loss.backward();
      const nll = ptx > 0
        ? accumulatePtx(model, [generalRows.next().value!, learntRows.next().value!], ptx)
        : null;
      const norm = await clippedStep(optimizer);
      figures.push(await finite({ "policy/grad_norm": norm, ...nll ? { "loss/ptx": nll } : {} }));
      losses.push(result);
    }
    model.eval();
    kl.update(seen, size);
    return {
      ...metrics,
      ...await ppoMetrics(losses),
      ...Object.fromEntries(
        Object.keys(figures[0]).map((name) => [name, mean(figures.map((f) => f[name]))]),
      ),
      "objective/rule": mean(ruleScores(answers, tokenizer)),
      kl_coefficient: kl.coefficient,
    };
  };

  let first: Figures = {}, last: Figures = {};
  await runSteps<State>({
    name: ptx > 0 ? "PPO-ptx" : "PPO",
    folder,
    steps,
    parameters: new Map([
      ...model.namedParameters().filter(([, p]) => p.requiresGrad),
      ...value.namedParameters().map(([name, p]) => [`value.${name}`, p] as const),
    ]),
    optimizer,
    begin: async () => first = last = await measure(),
    async step(number: number): Promise<Figures> {
      const figures = await learn(number);
      const isMeasured = number === steps || number % MEASURE === 0;
      if (isMeasured) last = await measure();
      host.log.line(described(ptx > 0 ? "PPO-ptx" : "PPO", number, steps, figures));
      return { ...figures, ...isMeasured ? last : {} };
    },
    state: () => ({
      sampling: sampling.state(),
      order: order.state(),
      kl: kl.state(),
      general: general.state(),
      learnt: learnt.state(),
      first,
      last,
      samples,
    }),
    load: (state) => {
      sampling.load(state.sampling);
      order.load(state.order);
      kl.load(state.kl);
      general.load(state.general);
      learnt.load(state.learnt);
      ({ first, last, samples } = state);
    },
  }, host);
  await saveAdapter(model, folder);
  await writeWhole(`${folder}/samples.json`, `${JSON.stringify(samples, null, 2)}\n`);
  cache.dispose();
  const before = Object.entries(first).map(([key, x]) => [`${key}_before`, x] as const);
  return { ...Object.fromEntries(before), ...last };
}

function described(name: string, step: number, steps: number, figures: Figures): string {
  const of = (key: string): string => figures[key].toFixed(2);
  return `${name} ${step}/${steps}: reward ${of("objective/scores")}, rule ${
    of("objective/rule")
  }, KL ${of("objective/kl")}, entropy ${of("policy/entropy")}, β ${
    figures.kl_coefficient.toFixed(3)
  }`;
}

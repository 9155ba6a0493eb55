/**
 * PPO on a batch of experience: the loss, minibatches, metrics.
 *
 * @module
 */

import { type Generator, noGrad, read, type Tensor, threefryWord } from "../core/mod.ts";
import type { CausalLM } from "../nn/mod.ts";
import { type AnswerBatch, answerBatch, type AnswerRoom, padded } from "./answers.ts";
import type { Experience } from "./experience.ts";
import { maskedMean, policyLoss, valueLoss } from "./ppo_losses.ts";
import { policyPass } from "./policy_pass.ts";
import type { ValueModel } from "./value_model.ts";

/** Experience as tensors, [B, R] each but the batch; padded with 0. */
export interface PPOBatch {
  /** Prompts and answers. */
  readonly answers: AnswerBatch;
  /** log π of each token when it was sampled. */
  readonly logprobs: Tensor;
  /** V of each token's state when it was sampled. */
  readonly values: Tensor;
  /** Advantages. */
  readonly advantages: Tensor;
  /** Returns. */
  readonly returns: Tensor;
}

/** The tensors of a batch of experience. Throws as {@linkcode answerBatch} does. */
export function ppoBatch(rows: readonly Experience[], room: AnswerRoom = {}): PPOBatch {
  const answers = answerBatch(rows, room);
  const of = (key: "logprobs" | "values" | "advantages" | "returns"): Tensor =>
    padded(rows.map((row) => row[key]), answers.length);
  return {
    answers,
    logprobs: of("logprobs"),
    values: of("values"),
    advantages: of("advantages"),
    returns: of("returns"),
  };
}

/** Options of {@linkcode ppoLoss}. */
export interface PPOOptions {
  /** ε of the policy's ratio. Default .2. */
  readonly clip?: number;
  /** ε of the values. Default .2. */
  readonly valueClip?: number;
  /** What the value loss is multiplied by. Default .1. */
  readonly valueCoefficient?: number;
  /** Divides the logits, as in sampling. Default .7. */
  readonly temperature?: number;
  /** What sums over tokens are divided by; see {@linkcode ClipOptions}. */
  readonly count?: number;
}

/** What {@linkcode ppoLoss} gives: scalars; all but the loss are for the log. */
export interface PPOLoss {
  /** Policy loss plus coefficient · value loss. */
  readonly loss: Tensor;
  /** The policy loss. */
  readonly policy: Tensor;
  /** The value loss. */
  readonly value: Tensor;
  /** Mean entropy of a valid token's distribution, in nats. */
  readonly entropy: Tensor;
  /** See {@linkcode PolicyLoss}. */
  readonly approxKL: Tensor;
  /** See {@linkcode PolicyLoss}. */
  readonly clipFraction: Tensor;
  /** See {@linkcode PolicyLoss}. */
  readonly ratio: Tensor;
  /** See {@linkcode ValueLoss}. */
  readonly valueClipFraction: Tensor;
}

/**
 * The loss of PPO over a batch of experience: {@linkcode policyLoss} + valueCoefficient ·
 * {@linkcode valueLoss}, both means over the answers' tokens (Ziegler et al. 2019; TRL's defaults).
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { AdamW } from "@graft/ml/optim";
 * import { inject } from "@graft/ml/peft";
 * import {
 *   makeExperience, measureAnswers, ppoBatch, ppoLoss, sampleAnswers, ValueModel,
 * } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, eos_token_id: 2,
 * });
 * inject(model, { r: 4 });
 * const value = new ValueModel(16);
 * const optimizer = new AdamW([...model.trainable(), ...value.trainable()], { lr: 1e-3 });
 *
 * const answers = await sampleAnswers(model, [[1, 5], [1, 6, 7]], { maxTokens: 8 });
 * const rollouts = await measureAnswers(model, answers, { value });
 * const scores = answers.map(({ tokens }) => tokens.filter((t) => t < 25).length);
 * const { rows, metrics } = makeExperience(rollouts, scores);
 * console.log(metrics["objective/scores"]);
 * for (let epoch = 0; epoch < 4; epoch++) {
 *   const { loss } = ppoLoss(model, value, ppoBatch(rows));
 *   loss.backward();
 *   await optimizer.step();
 *   optimizer.zeroGrad();
 * }
 * ```
 */
export function ppoLoss(
  model: CausalLM,
  value: ValueModel,
  batch: PPOBatch,
  options: PPOOptions = {},
): PPOLoss {
  const { clip, valueClip, valueCoefficient = 0.1, temperature, count } = options;
  const { mask, count: tokens } = batch.answers;
  const pass = policyPass(model, batch.answers, { value, temperature });
  const divisor = count ?? tokens;
  const policy = policyLoss({
    logprobs: pass.logprobs,
    oldLogprobs: batch.logprobs,
    advantages: batch.advantages,
    mask,
  }, { clip, count: divisor });
  const values = valueLoss({
    values: pass.values!,
    oldValues: batch.values,
    returns: batch.returns,
    mask,
  }, { clip: valueClip, count: divisor });
  return {
    loss: policy.loss.add(values.loss.mul(valueCoefficient)),
    policy: policy.loss.detach(),
    value: values.loss.detach(),
    entropy: noGrad(() => maskedMean(mask, divisor)(pass.entropy)),
    approxKL: policy.approxKL,
    clipFraction: policy.clipFraction,
    ratio: policy.ratio,
    valueClipFraction: values.clipFraction,
  };
}

/**
 * The rows in minibatches, `epochs` times over, each time in another order that `generator` decides.
 *
 * Throws a `RangeError` where the number of rows is no multiple of `size`.
 */
export function* minibatches<T>(
  rows: readonly T[],
  size: number,
  epochs: number,
  generator: Generator,
): Iterable<T[]> {
  if (!Number.isInteger(size) || size < 1 || rows.length === 0 || rows.length % size !== 0) {
    throw new RangeError(
      `minibatches: needs a number of rows that is a multiple of the minibatch's ${size}, got ` +
        `${rows.length}`,
    );
  }
  for (let epoch = 0; epoch < epochs; epoch++) {
    const { key0, key1, counter } = generator.next();
    const drawn = rows.map((row, i) => ({ row, at: threefryWord(key0, key1, i, counter) >>> 0 }));
    drawn.sort((a, b) => a.at - b.at); // stable: equal draws keep their order
    for (let at = 0; at < rows.length; at += size) {
      yield drawn.slice(at, at + size).map(({ row }) => row);
    }
  }
}

/** What the steps on a batch of experience came to, under TRL's names: means over the steps. */
export interface PPOMetrics {
  /** See {@linkcode PolicyLoss}. */
  readonly "policy/approxkl": number;
  /** See {@linkcode PolicyLoss}. */
  readonly "policy/clipfrac": number;
  /** Mean entropy of a valid token's distribution, in nats. */
  readonly "policy/entropy": number;
  /** The policy loss. */
  readonly "loss/policy": number;
  /** The value loss. */
  readonly "loss/value": number;
  /** See {@linkcode ValueLoss}. */
  readonly "val/clipfrac": number;
  /** Mean ratio ρ. */
  readonly "val/ratio": number;
  /** Variance of the steps' mean ratios; 0 for one step. */
  readonly "val/ratio_var": number;
}

/**
 * Reads the losses of several steps and sums them up.
 *
 * Throws an `Error` where a loss is not finite: it says at which of the steps.
 */
export async function ppoMetrics(losses: readonly PPOLoss[]): Promise<PPOMetrics> {
  const keys = [
    "loss",
    "policy",
    "value",
    "entropy",
    "approxKL",
    "clipFraction",
    "ratio",
    "valueClipFraction",
  ] as const;
  const all = await read(...losses.flatMap((loss) => keys.map((key) => loss[key])));
  const of = (key: typeof keys[number]): number[] =>
    losses.map((_, i) => all[i * keys.length + keys.indexOf(key)][0]);
  const bad = of("loss").findIndex((loss) => !Number.isFinite(loss));
  if (bad >= 0) throw new Error(`PPO: the loss of minibatch ${bad + 1} is ${of("loss")[bad]}`);
  const mean = (key: typeof keys[number]): number => average(of(key));
  const ratio = mean("ratio");
  const spread = of("ratio").map((r) => (r - ratio) ** 2);
  return {
    "policy/approxkl": mean("approxKL"),
    "policy/clipfrac": mean("clipFraction"),
    "policy/entropy": mean("entropy"),
    "loss/policy": mean("policy"),
    "loss/value": mean("value"),
    "val/clipfrac": mean("valueClipFraction"),
    "val/ratio": ratio,
    "val/ratio_var": spread.reduce((a, b) => a + b) / Math.max(1, spread.length - 1),
  };
}

function average(values: readonly number[]): number {
  return values.reduce((sum, x) => sum + x, 0) / values.length;
}

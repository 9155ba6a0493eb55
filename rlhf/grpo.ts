/**
 * Group relative policy optimisation: the other answers to a prompt take the place of a value model.
 *
 * @module
 */

import { noGrad, type Tensor, tensor, where } from "../core/mod.ts";
import type { CausalLM } from "../nn/mod.ts";
import type { PerToken } from "./advantages.ts";
import { type Answer, answerBatch, type AnswerRoom, padded } from "./answers.ts";
import { checkTokens, rowLimits } from "./checks.ts";
import { policyPass } from "./policy_pass.ts";
import { maskedMean, policyLoss } from "./ppo_losses.ts";
import { checkScores } from "./scores.ts";

/** Options of {@linkcode groupAdvantages}. */
export interface GroupOptions {
  /** Whether a group's advantages are brought to one size: divided by std + 1e-4. Default true. */
  readonly scale?: boolean;
}

/**
 * The advantage of each answer over the others to its prompt (Shao et al. 2024, "DeepSeekMath", section
 * 4.1.2), where std is that of the sample:
 *
 *     A = (r − mean of the group) / (std of the group + 1e-4)
 *
 * Answers are in groups of `size`, those to one prompt next to each other. In a group whose scores are
 * all the same, nothing can be told apart: its advantages are 0.
 *
 * Throws a `RangeError` where the size is below 2, the scores are not whole groups, or one is not finite.
 *
 * @example
 * ```ts
 * import { groupAdvantages } from "@graft/ml/rlhf";
 *
 * console.log(groupAdvantages([1, 3, 5, 5], 2)); // about [-0.707, 0.707, 0, 0]
 * ```
 */
export function groupAdvantages(
  scores: ArrayLike<number>,
  size: number,
  options: GroupOptions = {},
): Float64Array<ArrayBuffer> {
  if (!Number.isInteger(size) || size < 2) {
    throw new RangeError(`groupAdvantages: a group has 2 answers or more, got size ${size}`);
  }
  const all = checkScores("groupAdvantages", scores, scores.length);
  if (all.length === 0 || all.length % size !== 0) {
    throw new RangeError(
      `groupAdvantages: needs whole groups of ${size}, got ${all.length} scores`,
    );
  }
  const { scale = true } = options;
  for (let at = 0; at < all.length; at += size) {
    const group = all.subarray(at, at + size);
    const mean = group.reduce((sum, x) => sum + x, 0) / size;
    // Rounding of the mean must not tell apart what is the same.
    const same = group.every((x) => x === group[0]);
    const variance = group.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (size - 1);
    const divisor = scale ? Math.sqrt(variance) + 1e-4 : 1;
    group.forEach((x, i) => group[i] = same ? 0 : (x - mean) / divisor);
  }
  return all;
}

/** An answer with what {@linkcode grpoLoss} needs of it. */
export interface GRPORow extends Answer {
  /** How much better it is than the others; see {@linkcode groupAdvantages}. */
  readonly advantage: number;
  /**
   * log π of each token when it was sampled, in nats. Where no row has it, the policy is taken to be the
   * one that sampled: right for one step on each batch.
   */
  readonly logprobs?: PerToken;
  /** log π_ref of each token; needed where β is above 0. */
  readonly refLogprobs?: PerToken;
}

/** Options of {@linkcode grpoLoss}. */
export interface GRPOOptions {
  /** How far the ratio may be from 1, ε. Default .2. */
  readonly clip?: number;
  /** Coefficient of the KL to the reference. Default 0: none. */
  readonly beta?: number;
  /** Divides the logits, as in sampling. Default .7. */
  readonly temperature?: number;
  /**
   * What the sum over tokens is divided by. Default: the tokens of these rows. Where several batches
   * make one step, give the tokens of all, so that each weighs the same.
   */
  readonly count?: number;
  /** Room in the tensors of a batch. */
  readonly room?: AnswerRoom;
}

/** What {@linkcode grpoLoss} gives: scalars; all but the loss are for the log. */
export interface GRPOLoss {
  /** The loss. */
  readonly loss: Tensor;
  /** Mean over tokens of the estimate of the KL to the reference, in nats; 0 where β is 0. */
  readonly kl: Tensor;
  /** Mean entropy of a token's distribution, in nats. */
  readonly entropy: Tensor;
  /** Share of the tokens of which the clipped side counts. */
  readonly clipFraction: Tensor;
  /** Mean ratio ρ. */
  readonly ratio: Tensor;
}

/**
 * The loss of GRPO (Shao et al. 2024, formula 3), with ρ = π / π_old, and the sum over the tokens of all
 * answers divided by their number, so that each token weighs the same (Yu et al. 2025, "DAPO", section
 * 3.3):
 *
 *     max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε)) + β (π_ref / π − log(π_ref / π) − 1)
 *
 * Throws a `RangeError` where there is no row, an answer or prompt is empty, a row is longer than the
 * context, an advantage is not finite, only some rows have `logprobs`, or β is negative or above 0 with
 * a row that has no `refLogprobs`.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { AdamW } from "@graft/ml/optim";
 * import { groupAdvantages, grpoLoss, sampleAnswers } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, eos_token_id: 2,
 * });
 * const optimizer = new AdamW(model.trainable(), { lr: 1e-3 });
 * const prompts = [[1, 5], [1, 5], [1, 6], [1, 6]]; // two answers to each prompt
 * const answers = await sampleAnswers(model, prompts, { maxTokens: 8 });
 * const scores = answers.map(({ tokens }) => tokens.filter((t) => t < 25).length);
 * const advantages = groupAdvantages(scores, 2);
 * const { loss } = grpoLoss(model, answers.map((a, i) => ({ ...a, advantage: advantages[i] })));
 * loss.backward();
 * await optimizer.step();
 * ```
 */
export function grpoLoss(
  model: CausalLM,
  rows: readonly GRPORow[],
  options: GRPOOptions = {},
): GRPOLoss {
  const { clip, beta = 0, temperature, count, room } = options;
  checkRows(rows, beta, model);
  const batch = answerBatch(rows, room);
  const { mask, length } = batch;
  const { logprobs, entropy } = policyPass(model, batch, { temperature });
  const per = (key: "logprobs" | "refLogprobs"): Tensor =>
    padded(rows.map((row) => row[key]!), length); // [B, R]
  const advantages = tensor(Float32Array.from(rows, (row) => row.advantage))
    .unsqueeze(1).expand(rows.length, length);
  const divisor = count ?? batch.count;
  const policy = policyLoss({
    logprobs,
    oldLogprobs: rows[0].logprobs ? per("logprobs") : logprobs.detach(),
    advantages,
    mask,
  }, { clip, count: divisor });
  const mean = maskedMean(mask, divisor);
  const kl = beta > 0 ? mean(klEstimate(logprobs, per("refLogprobs"), mask)) : null;
  const loss = kl ? policy.loss.add(kl.mul(beta)) : policy.loss;
  return noGrad(() => ({
    loss,
    kl: kl?.detach() ?? tensor(0),
    entropy: mean(entropy),
    clipFraction: policy.clipFraction,
    ratio: policy.ratio,
  }));
}

/** π_ref / π − log(π_ref / π) − 1: never negative, and KL(π, π_ref) in the mean over samples of π. */
function klEstimate(logprobs: Tensor, refLogprobs: Tensor, mask: Tensor): Tensor {
  // Masked before the exponential: what stands at padding must not overflow.
  const d = where(mask, refLogprobs.sub(logprobs), 0);
  return d.exp().sub(d).sub(1);
}

function checkRows(rows: readonly GRPORow[], beta: number, model: CausalLM): void {
  if (!(beta >= 0 && beta < Infinity)) {
    throw new RangeError(`grpoLoss: beta must be 0 or more, got ${beta}`);
  }
  const sampled = rows[0]?.logprobs !== undefined;
  rows.forEach(({ advantage, tokens, logprobs, refLogprobs }, b) => {
    if (!Number.isFinite(advantage)) {
      throw new RangeError(`grpoLoss: the advantage of row ${b} must be finite, got ${advantage}`);
    }
    if ((logprobs !== undefined) !== sampled) {
      throw new RangeError(`grpoLoss: needs logprobs of all rows or of none; see row ${b}`);
    }
    const needed = { ...logprobs && { logprobs }, ...beta > 0 && { refLogprobs } };
    for (const [name, values] of Object.entries(needed)) {
      if (values?.length !== tokens.length) {
        throw new RangeError(
          `grpoLoss: row ${b} needs ${name} of ${tokens.length} tokens, got ${
            values?.length ?? "none"
          }`,
        );
      }
    }
  });
  checkTokens(
    "grpoLoss",
    "row",
    rows.map(({ prompt, tokens }) => [...prompt, ...tokens]),
    rowLimits(model),
  );
}

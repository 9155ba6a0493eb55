/**
 * PPO-ptx: gradients that keep what the model could do before.
 *
 * @module
 */

import { type Tensor, tensor } from "../core/mod.ts";
import type { LanguageBatch, Module } from "../nn/mod.ts";

/** What {@linkcode accumulatePtx} needs of a model. */
export interface LanguageModel extends Module {
  /** Mean cross-entropy a target, in nats. */
  loss(batch: LanguageBatch): Tensor;
}

/**
 * Adds the gradients of `coefficient · NLL` to those that are there, and gives the NLL: a scalar, nats
 * a target over all batches together. Call it between the backward pass of PPO and the optimizer's
 * step: the step then maximises (Ouyang et al. 2022, section 3.5, formula 2)
 *
 *     E[r − β log(π / π_SFT)] + γ_ptx E_pretrain[log π]
 *
 * The batches are general text, and examples of the fine-tuning before, if wanted: each is a pass of
 * its own, and each target weighs the same. The paper takes γ_ptx 27.8 with β .02, and 8 times as many
 * examples of pretraining as of PPO.
 *
 * Throws a `RangeError` where there is no batch, or the coefficient is negative or not finite.
 */
export function accumulatePtx(
  model: LanguageModel,
  batches: readonly LanguageBatch[],
  coefficient = 27.8,
): Tensor {
  if (batches.length === 0) throw new RangeError("accumulatePtx: needs at least one batch");
  if (!(coefficient >= 0 && coefficient < Infinity)) {
    throw new RangeError(`accumulatePtx: the coefficient must be 0 or more, got ${coefficient}`);
  }
  const counts = batches.map((batch) => {
    const targets = "shape" in batch ? tensor(batch.targets) : batch.targets;
    return targets.ne(-100).to("f32").sum();
  });
  const total = counts.reduce((a, b) => a.add(b)).maximum(1);
  const parts = batches.map((batch, i) => {
    const part = model.loss(batch).mul(counts[i].div(total));
    part.mul(coefficient).backward();
    return part.detach();
  });
  return parts.reduce((a, b) => a.add(b));
}

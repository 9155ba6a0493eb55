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
  const sized = batches.map((batch) => {
    const { inputs, targets } = asTensors(batch);
    return { inputs, targets, count: targets.ne(-100).to("f32").sum() };
  });
  const total = sized.map(({ count }) => count).reduce((a, b) => a.add(b)).maximum(1);
  let nll: Tensor | null = null;
  for (const { inputs, targets, count } of sized) {
    const part = model.loss({ inputs, targets }).mul(count.div(total));
    part.mul(coefficient).backward();
    nll = nll ? nll.add(part.detach()) : part.detach();
  }
  return nll!;
}

function asTensors(batch: LanguageBatch): { inputs: Tensor; targets: Tensor } {
  if (!("shape" in batch)) return batch;
  const { inputs, targets, shape } = batch;
  return { inputs: tensor(inputs, { shape }), targets: tensor(targets, { shape }) };
}

/**
 * The two losses of PPO, over tensors of one shape with a mask: which layout or padding they come from
 * does not matter.
 *
 * @module
 */

import { noGrad, type Tensor, where } from "../core/mod.ts";

/** Options of {@linkcode policyLoss} and {@linkcode valueLoss}. */
export interface ClipOptions {
  /** How far the new may be from the old, ε. Default .2. */
  readonly clip?: number;
  /**
   * What the sum over tokens is divided by. Default: the mask's own tokens. Where several batches or
   * ranks make one step, give the tokens of all, so that each token weighs the same.
   */
  readonly count?: number;
}

/** What {@linkcode policyLoss} needs: f32 tensors of one shape. */
export interface PolicyLossInputs {
  /** log π of each token now. */
  readonly logprobs: Tensor;
  /** log π of each token when it was sampled. */
  readonly oldLogprobs: Tensor;
  /** Advantages. */
  readonly advantages: Tensor;
  /** bool: true where a token counts. */
  readonly mask: Tensor;
}

/** What {@linkcode policyLoss} gives: scalars; all but the loss are for the log. */
export interface PolicyLoss {
  /** The loss. */
  readonly loss: Tensor;
  /** Share of the tokens of which the clipped side counts. */
  readonly clipFraction: Tensor;
  /** `½ mean (log π − log π_old)²`, which is about KL(π_old, π). */
  readonly approxKL: Tensor;
  /** Mean of ρ. */
  readonly ratio: Tensor;
}

/**
 * The clipped surrogate objective (Schulman et al. 2017, "Proximal policy optimization", formula 7) as a
 * loss, with ρ = π / π_old:
 *
 *     mean over valid tokens of max(−A ρ, −A clip(ρ, 1 − ε, 1 + ε))
 *
 * Throws a `RangeError` where the shapes differ.
 */
export function policyLoss(inputs: PolicyLossInputs, options: ClipOptions = {}): PolicyLoss {
  const { logprobs, oldLogprobs, advantages, mask } = inputs;
  const clip = checkClip("policyLoss", options.clip);
  checkShapes("policyLoss", { ...inputs });
  const mean = maskedMean(mask, options.count);
  // Masked before the exponential: what stands at padding must not overflow.
  const difference = where(mask, logprobs.sub(oldLogprobs), 0);
  const ratio = difference.exp();
  const plain = advantages.neg().mul(ratio);
  const clipped = advantages.neg().mul(ratio.clamp(1 - clip, 1 + clip));
  const loss = mean(plain.maximum(clipped));
  return noGrad(() => ({
    loss,
    clipFraction: mean(clipped.gt(plain).to("f32")),
    approxKL: mean(difference.square()).mul(0.5),
    ratio: mean(ratio),
  }));
}

/** What {@linkcode valueLoss} needs: f32 tensors of one shape. */
export interface ValueLossInputs {
  /** V of each token's state now. */
  readonly values: Tensor;
  /** V when the token was sampled. */
  readonly oldValues: Tensor;
  /** Returns R. */
  readonly returns: Tensor;
  /** bool: true where a token counts. */
  readonly mask: Tensor;
}

/** What {@linkcode valueLoss} gives: scalars; all but the loss are for the log. */
export interface ValueLoss {
  /** The loss. */
  readonly loss: Tensor;
  /** Share of the tokens of which the clipped side counts. */
  readonly clipFraction: Tensor;
}

/**
 * The clipped value loss: mean over valid tokens of
 *
 *     ½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²)
 *
 * Throws a `RangeError` where the shapes differ.
 */
export function valueLoss(inputs: ValueLossInputs, options: ClipOptions = {}): ValueLoss {
  const { values, oldValues, returns, mask } = inputs;
  const clip = checkClip("valueLoss", options.clip);
  checkShapes("valueLoss", { ...inputs });
  const mean = maskedMean(mask, options.count);
  const near = values.maximum(oldValues.sub(clip)).minimum(oldValues.add(clip));
  const plain = values.sub(returns).square();
  const clipped = near.sub(returns).square();
  const loss = mean(plain.maximum(clipped)).mul(0.5);
  return noGrad(() => ({ loss, clipFraction: mean(clipped.gt(plain).to("f32")) }));
}

/** The mean over the tokens that count, of any number of tensors. */
export function maskedMean(mask: Tensor, count?: number): (x: Tensor) => Tensor {
  const divisor = count ?? mask.to("f32").sum().maximum(1);
  return (x) => where(mask, x, 0).sum().div(divisor);
}

function checkClip(what: string, clip = 0.2): number {
  if (!(clip > 0)) throw new RangeError(`${what}: clip must be above 0, got ${clip}`);
  return clip;
}

function checkShapes(what: string, tensors: Record<string, Tensor>): void {
  const shapes = Object.entries(tensors).map(([name, { shape }]) =>
    `${name} [${shape.join(", ")}]`
  );
  const [first] = Object.values(tensors);
  if (Object.values(tensors).some(({ shape }) => shape.join() !== first.shape.join())) {
    throw new RangeError(`${what}: needs tensors of one shape, got ${shapes.join(", ")}`);
  }
}

/**
 * Losses. Each gives a scalar: the mean over its elements.
 *
 * @module
 */

import type { Tensor } from "../core/mod.ts";

/** Mean squared error, `mean((a - b)²)`: two tensors of one shape -> a scalar. */
export function mseLoss(prediction: Tensor, target: Tensor): Tensor {
  return prediction.sub(target).square().mean();
}

/** Mean absolute error, `mean(|a - b|)`: two tensors of one shape -> a scalar. */
export function l1Loss(prediction: Tensor, target: Tensor): Tensor {
  return prediction.sub(target).abs().mean();
}

/**
 * Binary cross-entropy of logits: `mean(-y log σ(x) - (1 - y) log(1 - σ(x)))`, computed without
 * overflow as `mean(softplus(x) - x y)`, in nats. Targets y are in [0, 1], of the logits' shape.
 */
export function bceWithLogits(logits: Tensor, target: Tensor): Tensor {
  return logits.softplus().sub(logits.mul(target)).mean();
}

/**
 * `mean over rows of Σ exp(p) (p - q)`: the Kullback-Leibler divergence of two rows of
 * log-probabilities, [..., V] each, in nats.
 */
export function klDivergence(p: Tensor, q: Tensor): Tensor {
  return p.exp().mul(p.sub(q)).sum(-1).mean();
}

export { crossEntropy, linearCrossEntropy } from "../core/mod.ts";

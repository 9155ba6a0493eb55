/**
 * Gradient clipping.
 *
 * @module
 */

import type { Tensor, Variable } from "../core/mod.ts";
import { internally, withoutGradients } from "../core/graph.ts";

/**
 * Scales all gradients down together where their global norm, `√Σ g²` over every element of every
 * gradient, is above `maxNorm` (Pascanu et al. 2013). All of it happens on the device. Returns the norm
 * from before as a scalar that can be read later, or never. Parameters without gradient are left out.
 *
 * Throws a `RangeError` where no parameter has a gradient, or `maxNorm` is not above 0 (`Infinity` only
 * measures).
 *
 * @example
 * ```ts
 * import { init, tensor, Variable } from "@graft/ml";
 * import { clipGradNorm } from "@graft/ml/optim";
 *
 * await init({ device: "cpu" });
 * const w = new Variable(tensor([3, 4]), { requiresGrad: true });
 * w.square().sum().div(2).backward();
 * const norm = clipGradNorm([w], 1);
 * console.log(await norm.item(), await w.grad!.data()); // 5, about [0.6, 0.8]
 * ```
 */
export function clipGradNorm(parameters: readonly Variable[], maxNorm: number): Tensor {
  if (!(maxNorm > 0)) {
    throw new RangeError(`clipGradNorm: maxNorm must be above 0, got ${maxNorm}`);
  }
  const gradients = parameters.flatMap((p) => p.grad ? [p.grad] : []);
  if (gradients.length === 0) {
    throw new RangeError("clipGradNorm: no parameter has a gradient: call backward() before");
  }
  return withoutGradients(() => {
    const squares = internally(() => {
      let sums = gradients.map((g) => g.square().sum());
      // In pairs, so that rounding grows with the logarithm of their number.
      while (sums.length > 1) {
        const half = Math.ceil(sums.length / 2);
        sums = sums.slice(0, half).map((s, i) =>
          half + i < sums.length ? s.add(sums[half + i]) : s
        );
      }
      return sums[0];
    });
    const norm = squares.sqrt();
    if (maxNorm === Infinity) return norm;
    internally(() => {
      // PyTorch's formula; NaN stays NaN.
      const factor = norm.add(1e-6).reciprocal().mul(maxNorm).minimum(1);
      for (const gradient of gradients) gradient.assign(gradient.mul(factor));
    });
    return norm;
  });
}

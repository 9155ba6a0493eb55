import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { normalise } from "./norm/mod.ts";

/**
 * x / √(mean(x²) + eps) · weight along the last dimension (Zhang and Sennrich 2019). `weight` is [D]
 * or null.
 */
export function rmsNorm(x: Tensor, weight: Tensor | null, eps = 1e-6): Tensor {
  const d = x.shape[x.rank - 1];
  if (x.rank === 0 || (weight && (weight.rank !== 1 || weight.shape[0] !== d))) {
    throw new RangeError(
      `rmsNorm: needs a weight of the last size of ${show(x.shape)}, got ${
        show(weight?.shape ?? [])
      }`,
    );
  }
  return normalise(x, weight, null, (x) => {
    const square = x.square().sum(-1, true).mul(1 / d); // [..., 1]
    return { mean: null, scale: square.add(eps).rsqrt() };
  });
}

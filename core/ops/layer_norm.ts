import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { normalise } from "./norm/mod.ts";

/**
 * (x - mean) / √(variance + eps) · weight + bias along the last dimension (Ba et al. 2016). `weight`
 * and `bias` are [D], or null.
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor | null,
  bias: Tensor | null,
  eps = 1e-5,
): Tensor {
  const d = x.shape[x.rank - 1];
  for (const p of [weight, bias]) {
    if (p && (p.rank !== 1 || p.shape[0] !== d)) {
      throw new RangeError(
        `layerNorm: needs a weight and bias of the last size of ${show(x.shape)}, got ${
          show(p.shape)
        }`,
      );
    }
  }
  return normalise(x, weight, bias, (x) => {
    const mean = x.sum(-1, true).mul(1 / d); // [..., 1]
    const variance = x.sub(mean).square().sum(-1, true).mul(1 / d);
    return { mean, scale: variance.add(eps).rsqrt() };
  });
}

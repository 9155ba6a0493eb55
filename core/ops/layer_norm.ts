import { customFunction } from "../autograd.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

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
  const centred = customFunction(
    [x],
    ([x]) => {
      const { mean, scale } = moments(x, d, eps);
      return x.sub(mean).mul(scale);
    },
    ({ g, inputs: [x] }) => {
      // r · (g - mean(g) - y · mean(g · y)) with y the normalised x
      const { mean, scale } = moments(x, d, eps);
      const y = x.sub(mean).mul(scale);
      const level = g.sum(-1, true).mul(1 / d);
      const slope = g.mul(y).sum(-1, true).mul(1 / d);
      return [g.sub(level).sub(y.mul(slope)).mul(scale)];
    },
  );
  const scaled = weight ? centred.mul(weight) : centred;
  return bias ? scaled.add(bias) : scaled;
}

function moments(x: Tensor, d: number, eps: number): { mean: Tensor; scale: Tensor } {
  const mean = x.sum(-1, true).mul(1 / d); // [..., 1]
  const variance = x.sub(mean).square().sum(-1, true).mul(1 / d);
  return { mean, scale: variance.add(eps).rsqrt() };
}

import { customFunction } from "../autograd.ts";
import { recordsGradients } from "../graph.ts";
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
  const inputs = [x, weight, bias].filter((t) => t !== null);
  let found: Moments;
  return customFunction(inputs, ([x, ...affine]) => {
    found = moments(x, d, eps);
    const w = weight && affine[0];
    const b = bias && affine[affine.length - 1];
    const y = normalised(x, found);
    const scaled = w ? y.mul(w) : y;
    return b ? scaled.add(b) : scaled;
  }, ({ g, inputs: [x, ...affine] }) => {
    const w = weight && affine[0];
    const b = bias && affine[affine.length - 1];
    // Forward's are at hand, but a gradient that is differentiated again has to know their recipe.
    const m = recordsGradients() ? moments(x, d, eps) : found;
    // What is recorded for each reader anew is computed inside of it, and not stored: [..., D].
    const y = () => normalised(x, m);
    const h = () => w ? g.mul(w) : g;
    const gradients: (Tensor | null)[] = [null];
    if (x.node.needsGrad) {
      // r · (h - mean(h) - y · mean(h · y)) with h the gradient of the normalised y
      const level = h().sum(-1, true).mul(1 / d);
      const slope = h().mul(y()).sum(-1, true).mul(1 / d);
      gradients[0] = h().sub(level).sub(y().mul(slope)).mul(m.scale);
    }
    if (w) gradients.push(w.node.needsGrad ? g.mul(y()) : null);
    if (b) gradients.push(b.node.needsGrad ? g : null);
    return gradients;
  });
}

/** Of each row, [..., 1]: its mean, and one over its deviation. */
interface Moments {
  readonly mean: Tensor;
  readonly scale: Tensor;
}

function normalised(x: Tensor, { mean, scale }: Moments): Tensor {
  return x.sub(mean).mul(scale);
}

function moments(x: Tensor, d: number, eps: number): Moments {
  const mean = x.sum(-1, true).mul(1 / d); // [..., 1]
  const variance = x.sub(mean).square().sum(-1, true).mul(1 / d);
  return { mean, scale: variance.add(eps).rsqrt() };
}

import { recordsGradients } from "../graph.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { customFunction } from "../autograd.ts";

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
  const scaleOf = (x: Tensor) => x.square().sum(-1, true).mul(1 / d).add(eps).rsqrt(); // [..., 1]
  let found: Tensor;
  return customFunction(weight ? [x, weight] : [x], ([x, w]) => {
    found = scaleOf(x);
    const y = x.mul(found);
    return w ? y.mul(w) : y;
  }, ({ g, inputs: [x, w] }) => {
    // Forward's is at hand, but a gradient that is differentiated again has to know its recipe.
    const r = recordsGradients() ? scaleOf(x) : found;
    // Recorded for each reader anew, it is computed inside of it, and not stored: [..., D].
    const h = () => w ? g.mul(w) : g;
    const gradients: (Tensor | null)[] = [null];
    if (x.node.needsGrad) {
      // r · h - x · r³ · mean(h · x) with h the gradient of the normalised x · r
      const pull = h().mul(x).sum(-1, true).mul(r).mul(r).mul(r).mul(1 / d); // [..., 1]
      gradients[0] = h().mul(r).sub(x.mul(pull));
    }
    if (w) gradients.push(w.node.needsGrad ? g.mul(x).mul(r) : null);
    return gradients;
  });
}

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
  if (!weight) {
    return customFunction([x], ([x]) => x.mul(scaleOf(x)), ({ g, inputs: [x] }) => {
      const r = scaleOf(x);
      return [inputGradient(x, g, r, d)];
    });
  }
  return customFunction(
    [x, weight],
    ([x, w]) => x.mul(scaleOf(x)).mul(w),
    ({ g, inputs: [x, w] }) => {
      const r = scaleOf(x);
      return [
        x.node.needsGrad ? inputGradient(x, g.mul(w), r, d) : null,
        w.node.needsGrad ? g.mul(x).mul(r) : null,
      ];
    },
  );
}

/** r · h - x · r³ · mean(h · x), for y = x · r and h the gradient of y. */
function inputGradient(x: Tensor, h: Tensor, r: Tensor, d: number): Tensor {
  const dot = h.mul(x).sum(-1, true); // [..., 1]
  const pull = dot.mul(r).mul(r).mul(r).mul(1 / d);
  return h.mul(r).sub(x.mul(pull));
}

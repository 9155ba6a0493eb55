import { customFunction } from "../autograd.ts";
import { axisOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** exp(x) / Σ exp(x) along `axis`, shifted by the maximum. */
export function softmax(x: Tensor, axis = -1): Tensor {
  const dim = axisOf("softmax", axis, x.shape);
  return customFunction(
    [x],
    ([x]) => {
      const e = x.sub(x.max(dim, true)).exp();
      return e.div(e.sum(dim, true));
    },
    // y (g - Σ g y)
    ({ g, out }) => [out.mul(g.sub(g.mul(out).sum(dim, true)))],
  );
}

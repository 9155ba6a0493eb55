import { customFunction } from "../autograd.ts";
import { axisOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** x - log Σ exp(x) along `axis`. */
export function logSoftmax(x: Tensor, axis = -1): Tensor {
  const dim = axisOf("logSoftmax", axis, x.shape);
  return customFunction(
    [x],
    ([x]) => x.sub(x.logsumexp(dim, true)),
    // g - softmax(x) Σ g
    ({ g, out }) => [g.sub(out.exp().mul(g.sum(dim, true)))],
  );
}

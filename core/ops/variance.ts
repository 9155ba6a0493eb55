import { axesOf, sizeOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** Variance along `axes`: the squared distance from the mean, over count − `correction`. */
export function variance(
  x: Tensor,
  axes?: number | readonly number[],
  keepDims = false,
  correction = 1,
): Tensor {
  const dims = axesOf("var", axes, x.shape);
  const count = sizeOf(dims.map((d) => x.shape[d]));
  if (count <= correction) {
    throw new RangeError(`var: needs more than ${correction} elements, got ${count}`);
  }
  return x.sub(x.mean(dims, true)).square().sum(dims, keepDims).mul(1 / (count - correction));
}

import { axesOf, sizeOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** Mean along `axes` (default: all). */
export function mean(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  const count = sizeOf(axesOf("mean", axes, x.shape).map((d) => x.shape[d]));
  return x.sum(axes, keepDims).mul(1 / count);
}

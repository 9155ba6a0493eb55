import { axisOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";
import { where } from "./where.ts";

/** Index of the first largest along `axis`. */
export function argmax(x: Tensor, axis = -1, keepDims = false): Tensor {
  const dim = axisOf("argmax", axis, x.shape);
  return firstWhere(x.eq(x.max(dim, true)), dim, keepDims);
}

/** Index of the first smallest along `axis`. */
export function argmin(x: Tensor, axis = -1, keepDims = false): Tensor {
  const dim = axisOf("argmin", axis, x.shape);
  return firstWhere(x.eq(x.min(dim, true)), dim, keepDims);
}

function firstWhere(hit: Tensor, dim: number, keepDims: boolean): Tensor {
  const n = hit.shape[dim];
  // A row of NaN has no extreme: the last index, not one outside.
  return where(hit, iota(hit.shape, dim, "i32", hit.device), n - 1).min(dim, keepDims);
}

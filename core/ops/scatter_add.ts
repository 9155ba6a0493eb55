import { axisOf, sameShape, show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";
import { where } from "./where.ts";

/**
 * Adds each element of `source` to the place that `indices` names along `axis`, of `size` places; the
 * inverse of gather. The order of additions is fixed. Time grows with size × places: for whole rows
 * there is {@linkcode scatterRows}.
 */
export function scatterAdd(source: Tensor, axis: number, indices: Tensor, size: number): Tensor {
  const dim = axisOf("scatterAdd", axis, source.shape);
  if (!sameShape(indices.shape, source.shape)) {
    throw new RangeError(
      `scatterAdd: needs indices of the source's shape ${show(source.shape)}, got ${
        show(indices.shape)
      }`,
    );
  }
  const wide = source.unsqueeze(dim); // [.., 1, j, ..]
  const at = indices.unsqueeze(dim);
  const shape = wide.shape.with(dim, size);
  return where(at.eq(iota(shape, dim, indices.dtype, source.device)), wide, 0).sum(dim + 1);
}

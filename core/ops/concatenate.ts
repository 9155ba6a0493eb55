import { axisOf, show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";
import { where } from "./where.ts";

/** Tensors one after another along `axis`. Their other sizes and their dtypes must be the same. */
export function concatenate(tensors: readonly Tensor[], axis = 0): Tensor {
  if (tensors.length === 0) throw new RangeError("concatenate: needs at least one tensor");
  const [first] = tensors;
  const dim = axisOf("concatenate", axis, first.shape);
  for (const t of tensors) {
    const fits = t.rank === first.rank &&
      t.shape.every((n, d) => d === dim || n === first.shape[d]);
    if (!fits || t.dtype !== first.dtype) {
      throw new RangeError(
        `concatenate: needs shapes alike but for axis ${dim} and one dtype, got ${
          tensors.map((t) => `${t.dtype}${show(t.shape)}`).join(", ")
        }`,
      );
    }
  }
  const parts = tensors.filter((t) => t.shape[dim] > 0);
  if (parts.length < 2) return parts[0] ?? first;
  const total = parts.reduce((sum, t) => sum + t.shape[dim], 0);
  let at = 0;
  let joined: Tensor | null = null;
  const place = iota(first.shape.with(dim, total), dim, "i32", first.device);
  for (const t of parts) {
    const padded = t.pad(dim, at, total - at - t.shape[dim]);
    joined = joined === null ? padded : where(place.lt(at), joined, padded);
    at += t.shape[dim];
  }
  return joined!;
}

import { axisOf, show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** Parts along `axis`: of the given sizes, which must add up, or of one size (the last may be smaller). */
export function split(x: Tensor, sizes: number | readonly number[], axis = 0): Tensor[] {
  const dim = axisOf("split", axis, x.shape);
  const n = x.shape[dim];
  let list: readonly number[];
  if (typeof sizes === "number") {
    if (!Number.isInteger(sizes) || sizes < 1) {
      throw new RangeError(`split: needs a size from 1 on, got ${sizes}`);
    }
    list = Array.from({ length: Math.ceil(n / sizes) }, (_, i) => Math.min(sizes, n - i * sizes));
  } else list = sizes;
  if (list.reduce((a, b) => a + b, 0) !== n) {
    throw new RangeError(
      `split: sizes [${list.join(", ")}] must add up to ${n}, axis ${dim} of ${show(x.shape)}`,
    );
  }
  let at = 0;
  return list.map((size) => x.slice(dim, at, at += size));
}

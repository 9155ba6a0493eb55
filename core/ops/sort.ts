import { axisOf, show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { withoutGradients } from "../graph.ts";
import { iota } from "./iota.ts";
import { where } from "./where.ts";

/** A sorted tensor and where its elements came from. */
export interface Sorted {
  readonly values: Tensor;
  readonly indices: Tensor;
}

/**
 * Indices that sort along `axis`; equal elements keep their order, NaN comes last.
 *
 * A bitonic network (Batcher 1968): ½ log₂² n passes, each a comparison with the element whose index
 * differs in one bit. The pair (value, index) is compared, which makes the order total.
 */
export function argsort(x: Tensor, axis = -1, descending = false): Tensor {
  const dim = axisOf("argsort", axis, x.shape);
  return withoutGradients(() => network(x, dim, descending));
}

function network(x: Tensor, dim: number, descending: boolean): Tensor {
  const n = x.shape[dim];
  let size = 1;
  while (size < n) size *= 2;
  const last = x.rank - 1;
  const order = x.shape.map((_, d) => d).filter((d) => d !== dim);
  const rows = x.permute([...order, dim]); // [..., n]
  const lead = rows.shape.slice(0, last);
  const worst = x.dtype === "f32" || x.dtype === "f16" || x.dtype === "bf16"
    ? Infinity
    : x.dtype === "u32"
    ? 2 ** 32 - 1
    : 2 ** 31 - 1;
  // Ascending keys: a descending order sorts the negatives.
  let key = rows;
  if (descending) key = x.dtype === "f32" || worst === Infinity ? rows.neg() : rows.not();
  if (worst === Infinity) key = where(key.isnan(), worst, key);
  key = key.pad(last, 0, size - n, worst);
  let index = iota([...lead, size], last, "i32", x.device);
  for (let block = 2; block <= size; block *= 2) {
    for (let step = block / 2; step >= 1; step /= 2) {
      // [..., size / (2 step), 2, step]: the partner is the other one of the middle pair.
      const pairs = [...lead, size / (2 * step), 2, step];
      const k = key.reshape(pairs);
      const i = index.reshape(pairs);
      const pk = k.flip(last + 1);
      const pi = i.flip(last + 1);
      const place = iota([size], 0, "i32", x.device).reshape(size / (2 * step), 2, step);
      const upper = place.and(step).ne(0);
      const down = place.and(block).ne(0);
      const partnerFirst = pk.lt(k).or(pk.eq(k).and(pi.lt(i)));
      // The lower place takes the smaller pair, unless the block runs down.
      const swap = partnerFirst.xor(upper.xor(down));
      key = where(swap, pk, k).reshape([...lead, size]);
      index = where(swap, pi, i).reshape([...lead, size]);
    }
  }
  const back = x.shape.map((_, d) => d === dim ? last : order.indexOf(d));
  return index.slice(last, 0, n).permute(back);
}

/** Sorted along `axis`, with the indices; the gradient goes back to where the elements came from. */
export function sort(x: Tensor, axis = -1, descending = false): Sorted {
  const indices = argsort(x, axis, descending);
  return { values: x.gather(axis, indices), indices };
}

/** The `k` largest along `axis`, largest first. Throws where there are fewer. */
export function topK(x: Tensor, k: number, axis = -1): Sorted {
  const dim = axisOf("topK", axis, x.shape);
  if (!Number.isInteger(k) || k < 1 || k > x.shape[dim]) {
    throw new RangeError(
      `topK: needs k in [1, ${x.shape[dim]}] for axis ${dim} of ${show(x.shape)}, got ${k}`,
    );
  }
  const indices = argsort(x, dim, true).slice(dim, 0, k);
  return { values: x.gather(dim, indices), indices };
}

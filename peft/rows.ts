/**
 * A batch whose rows use different adapters.
 *
 * @module
 */

import { concatenate, type Tensor, tensor } from "../core/mod.ts";

/** The name of no adapter, in a list of adapters by row. */
export const BASE = "__base__";

/**
 * Runs `fn` once for each name in `rows`, on the rows of `x` that have it, and puts the results back in
 * order. `x` is [B, ...] for B names, or [B · T, ...] with the T rows of a sequence in turn.
 *
 * Throws a `RangeError` where the rows of `x` cannot be shared out among the names.
 */
export function byRows(
  x: Tensor,
  rows: readonly string[],
  fn: (name: string, part: Tensor) => Tensor,
): Tensor {
  const n = rows.length, [first, ...rest] = x.shape;
  if (first === undefined || first % n !== 0) {
    throw new RangeError(
      `withRowAdapters: ${n} adapters for a batch of ${n} rows, but a layer got [${
        x.shape.join(", ")
      }]`,
    );
  }
  const names = [...new Set(rows)];
  if (names.length === 1) return fn(names[0], x);
  const repeated = first !== n;
  const batch = repeated ? x.reshape(n, first / n, ...rest) : x;
  const order: number[] = [];
  const parts = names.map((name) => {
    const at = rows.flatMap((row, i) => row === name ? [i] : []);
    order.push(...at);
    return fn(name, batch.take(tensor(Int32Array.from(at))));
  });
  // Row order[i] of the batch is row i of the parts.
  const inverse = new Int32Array(n);
  order.forEach((row, i) => inverse[row] = i);
  const y = concatenate(parts, 0).take(tensor(inverse));
  return repeated ? y.reshape(first, ...y.shape.slice(2)) : y;
}

/**
 * Joining arrays element by element, always in the order of ranks.
 *
 * @module
 */

import type { ReduceOp, Reducible } from "../group.ts";

/** Elements that are joined at a time: they stay in the nearest cache. */
const BLOCK = 2048;

/** `into[i] = parts[0][i] ∘ parts[1][i] ∘ …` for i from `from` to `to`; `into` may be one of the parts. */
export function reduceRange(
  into: Reducible,
  parts: readonly Reducible[],
  op: ReduceOp,
  from: number,
  to: number,
): void {
  const make = into.constructor as new (length: number) => Reducible;
  const sum = new make(BLOCK); // rounds to the dtype after each rank
  for (let start = from; start < to; start += BLOCK) {
    const end = Math.min(start + BLOCK, to);
    sum.set(parts[0].subarray(start, end) as never);
    for (let rank = 1; rank < parts.length; rank++) {
      const part = parts[rank];
      if (op === "max") takeLarger(sum, part, start, end);
      else if (sum instanceof Float32Array) addFloats(sum, part as Float32Array, start, end);
      else add(sum, part, start, end);
    }
    into.set(sum.subarray(0, end - start) as never, start);
  }
}

/** As `add`. A loop that has met one kind of array alone is twice as fast: gradients have their own. */
function addFloats(sum: Float32Array, part: Float32Array, start: number, end: number): void {
  for (let i = start; i < end; i++) sum[i - start] += part[i];
}

function add(sum: Reducible, part: Reducible, start: number, end: number): void {
  for (let i = start; i < end; i++) sum[i - start] += part[i];
}

function takeLarger(largest: Reducible, part: Reducible, start: number, end: number): void {
  for (let i = start; i < end; i++) {
    if (part[i] > largest[i - start]) largest[i - start] = part[i];
  }
}

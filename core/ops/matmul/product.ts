/**
 * A call of matmul as the kernels see it: two matrices, and batch dimensions that could not be made
 * rows.
 *
 * @module
 */

import type { DType } from "../../dtype.ts";
import type { CallKernel, Operand } from "../../kernel.ts";

/** One operand: lines (rows of a, columns of b) along the depth. Strides are in elements. */
export interface Side {
  /** Which input it is. */
  readonly input: number;
  readonly dtype: DType;
  readonly offset: number;
  /** From one line to the next. */
  readonly across: number;
  /** From one element of a line to the next. */
  readonly deep: number;
}

/** A batch dimension, and how far it moves each operand. */
export interface Batch {
  readonly n: number;
  readonly a: number;
  readonly b: number;
}

/** c[batches, m, n] = a[.., m, k] · b[.., k, n]. */
export interface Product {
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly batches: number;
  readonly outer: readonly Batch[];
  readonly a: Side;
  readonly b: Side;
}

/** An operand with as many dimensions as `rank`: what it lacks in front does not move it. */
export function widened(o: Operand, rank: number): Operand {
  const front = (value: number) => new Array<number>(rank - o.shape.length).fill(value);
  return { ...o, shape: [...front(1), ...o.shape], strides: [...front(0), ...o.strides] };
}

/** The fewest batch dimensions that a call can be put in. */
export function matrixOf(call: CallKernel): Product {
  const rank = call.outputs[0].shape.length;
  const [x, y] = call.inputs.map((o) => widened(o, rank));
  const ofBatch = (o: Operand, d: number) => o.shape[d] === 1 ? 0 : o.strides[d];
  const outer: Batch[] = [];
  const shape = call.outputs[0].shape;
  for (let d = 0; d < shape.length - 2; d++) {
    if (shape[d] !== 1) outer.push({ n: shape[d], a: ofBatch(x, d), b: ofBatch(y, d) });
  }
  for (let d = outer.length - 2; d >= 0; d--) {
    const [p, q] = [outer[d], outer[d + 1]];
    if (p.a === q.a * q.n && p.b === q.b * q.n) {
      outer.splice(d, 2, { n: p.n * q.n, a: q.a, b: q.b });
    }
  }
  const k = x.shape[rank - 1];
  let m = x.shape[rank - 2];
  let n = y.shape[rank - 1];
  let a: Side = {
    input: 0,
    dtype: x.dtype,
    offset: x.offset,
    across: x.strides[rank - 2],
    deep: k === 1 ? 1 : x.strides[rank - 1],
  };
  let b: Side = {
    input: 1,
    dtype: y.dtype,
    offset: y.offset,
    across: n === 1 ? 1 : y.strides[rank - 1],
    deep: y.strides[rank - 2],
  };
  if (k === 1) b = { ...b, deep: b.across === 1 ? n : 1 };
  // Batches that share b, and follow on each other in a, are rows.
  for (;;) {
    const last = outer[outer.length - 1];
    if (last === undefined || last.b !== 0 || (m !== 1 && last.a !== a.across * m)) break;
    if (m === 1) a = { ...a, across: last.a };
    m *= last.n;
    outer.pop();
  }
  if (m === 1) a = { ...a, across: 0 };
  // A single column is a single row of the transposed product.
  if (n === 1 && m > 1) {
    [m, n] = [n, m];
    [a, b] = [{ ...b, across: 0 }, a];
    for (let d = 0; d < outer.length; d++) {
      outer[d] = { n: outer[d].n, a: outer[d].b, b: outer[d].a };
    }
  }
  return { m, n, k, batches: outer.reduce((p, d) => p * d.n, 1), outer, a, b };
}

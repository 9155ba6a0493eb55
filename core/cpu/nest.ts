/**
 * How a loop kernel's nest is laid out: which dimension fills the vector lanes, in which order the
 * others run, and how the work is cut into units. Nothing here depends on the number of threads.
 *
 * @module
 */

import { bytesOf } from "../dtype.ts";
import { type Expr, nodesOf } from "../expr.ts";
import { bodiesOf, type LoopKernel } from "../kernel.ts";
import { costOf } from "./apply.ts";

/** The layout of a nest. Output dimensions but the vector one run as `rows`, flattened. */
export interface Nest {
  readonly kernel: LoopKernel;
  readonly nodes: readonly Expr[];
  /** The dimension that fills the lanes. */
  readonly vector: number;
  /** Whether the vector dimension is reduced. */
  readonly across: boolean;
  /** Output dimensions but the vector one, outermost first. */
  readonly outer: readonly number[];
  /** Reduced dimensions but the vector one, outermost first. */
  readonly loops: readonly number[];
  /** Vectors side by side in the innermost loop. */
  readonly unroll: number;
  /** Loop depth of each dimension: 1 for outer ones, and on inwards. */
  readonly level: readonly number[];
  readonly outputs: number;
  readonly terms: number;
  /** Elements of the vector dimension in one row; a multiple of the unrolled vectors, or all. */
  readonly tile: number;
  /** Parts a long reduction is cut into, and how many coordinates of `chunked` each takes. */
  readonly chunks: number;
  readonly chunk: number;
  /** The dimension that is cut into chunks. */
  readonly chunked: number;
  /** Whether a sum goes through f64 however short it is: its terms are sums themselves. */
  readonly wide: boolean;
  /** Nanoseconds for the whole, roughly. */
  readonly cost: number;
}

/** Most vectors side by side. */
export const WIDEST = 8;
/** A unit takes about this many nanoseconds. */
const UNIT = 12000;
/** Most units of a stage. */
const UNITS = 64;
/** Elements of a tile where an array is read or written across its lines. */
const CROSSING = 8;
/** A reduction to few outputs is cut into parts of at least this many terms. */
const PART = 16384;

/** Lays out `kernel`, which is simplified and has at least one dimension, none of them empty. */
export function layOut(kernel: LoopKernel): Nest {
  const { shape } = kernel;
  const nodes = nodesOf(...bodiesOf(kernel));
  const rank = shape.length - kernel.reduced;
  const vector = chooseVector(kernel, nodes);
  const across = vector >= rank;
  const outer = shape.map((_, d) => d).filter((d) => d < rank && d !== vector);
  const loops = shape.map((_, d) => d).filter((d) => d >= rank && d !== vector);
  const level = shape.map((_, d) => {
    if (d === vector) return across ? 2 + loops.length : 2;
    return d < rank ? 1 : (across ? 2 : 3) + loops.indexOf(d);
  });
  const weight = vectorCost(kernel, nodes, vector);
  const n = shape[vector];
  let unroll = !across && kernel.reduced > 0 && weight <= 4 && n >= 32 ? WIDEST : 4;
  while (unroll > 1 && n < 4 * unroll) unroll /= 2;

  const outputs = product(shape.slice(0, rank));
  const terms = product(shape.slice(rank));
  // About 2.5 cycles a nanosecond, four elements a vector; a short row costs its own.
  const rows = outputs / (across ? 1 : n);
  const cost = outputs * terms * weight / 10 + rows * (across ? 12 : 5);

  let chunks = 1;
  let chunk = 0;
  let chunked = -1;
  if (kernel.reduced > 0 && terms >= 2 * PART && outputs * 4 <= terms && rows < 16) {
    chunked = loops.reduce((a, b) => shape[b] > shape[a] ? b : a, across ? vector : loops[0]);
    const wanted = Math.min(UNITS, Math.floor(outputs * terms / PART), Math.floor(terms / 1024));
    const step = chunked === vector ? 4 * unroll : 1;
    chunk = Math.ceil(Math.ceil(shape[chunked] / wanted) / step) * step;
    chunks = Math.ceil(shape[chunked] / chunk);
    if (chunks === 1) chunked = -1;
  }
  let tile = n;
  if (!across && crosses(kernel, nodes, vector)) {
    // Short tiles, one row after the other: lines read across stay in the cache for the next rows.
    tile = Math.min(n, Math.max(CROSSING, 4 * unroll));
  } else if (!across) {
    const tiles = Math.min(UNITS, Math.ceil(cost / UNIT)) / (rows * chunks);
    const step = 4 * unroll;
    if (tiles > 1) tile = Math.max(16, Math.ceil(n / tiles / step) * step);
    if (tile >= n) tile = n;
  }
  return {
    kernel,
    nodes,
    vector,
    across,
    outer,
    loops,
    unroll,
    level,
    outputs,
    terms,
    tile,
    chunks,
    chunk,
    chunked,
    wide: false,
    cost,
  };
}

/** Whether a pointwise kernel walks an array across its lines, while the rows walk along them. */
function crosses(kernel: LoopKernel, nodes: readonly Expr[], vector: number): boolean {
  if (kernel.reduced > 0) return false;
  const next = vector === kernel.shape.length - 1 ? vector - 1 : kernel.shape.length - 1;
  if (next < 0) return false;
  const across = (strides: readonly number[]) =>
    Math.abs(strides[next]) === 1 && Math.abs(strides[vector]) >= 16;
  return across(kernel.write.strides) ||
    nodes.some((e) => (e.kind === "load" || e.kind === "fetch") && across(e.strides));
}

/** Units for `rows` of equal work that cost so much together, and the rows of each. */
export function cut(rows: number, cost: number): { units: number; each: number } {
  const wanted = Math.max(1, Math.min(UNITS, rows, Math.ceil(cost / UNIT)));
  const each = Math.ceil(rows / wanted);
  return { units: Math.ceil(rows / each), each };
}

/** The product of some sizes. */
export function product(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}

/** Whether the value of each node differs from lane to lane of dimension `vector`. */
export function dependsOn(nodes: readonly Expr[], vector: number): Map<Expr, boolean> {
  const out = new Map<Expr, boolean>();
  for (const e of nodes) {
    let depends = false;
    switch (e.kind) {
      case "index":
        depends = e.dim === vector;
        break;
      case "load":
        depends = e.strides[vector] !== 0 || e.bounds.some((b) => b.dim === vector);
        break;
      case "fetch":
        depends = e.strides[vector] !== 0 || e.at.some((a) => out.get(a.index)!);
        break;
      case "apply":
        depends = e.args.some((a) => out.get(a)!);
    }
    out.set(e, depends);
  }
  return out;
}

/** Rough cycles for one vector along `vector`. */
function vectorCost(kernel: LoopKernel, nodes: readonly Expr[], vector: number): number {
  const depends = dependsOn(nodes, vector);
  const rank = kernel.shape.length - kernel.reduced;
  const writes = 1 + (kernel.more?.length ?? 0);
  let cycles = kernel.reduced > 0 ? 1 : writes * writeCost(kernel.write.strides[vector]);
  if (kernel.reduced === 0 && vector >= rank) cycles += 4;
  for (const e of nodes) {
    if (!depends.get(e)) continue;
    if (e.kind === "apply") cycles += costOf(e.op, e.type);
    if (e.kind === "load" || e.kind === "fetch") {
      const scattered = e.kind === "fetch" && e.at.some((a) => depends.get(a.index)!);
      const unit = Math.abs(e.strides[vector]) <= 1 && !scattered;
      cycles += e.strides[vector] === -1 ? 6 : unit ? 1 : 8;
      if (bytesOf(kernel.inputs[e.input]) === 2) cycles += 2;
      if (e.kind === "load" && e.bounds.some((b) => b.dim === vector)) cycles += 3;
    }
  }
  return cycles;
}

function writeCost(stride: number): number {
  return stride === 1 ? 1 : 6;
}

/** The dimension along which a vector costs least, counting lanes that stay empty. */
function chooseVector(kernel: LoopKernel, nodes: readonly Expr[]): number {
  const { shape } = kernel;
  const rank = shape.length - kernel.reduced;
  let best = -1;
  let least = Infinity;
  for (let d = shape.length - 1; d >= 0; d--) {
    const n = shape[d];
    const used = n / (4 * Math.ceil(n / 4));
    let cost = vectorCost(kernel, nodes, d);
    if (kernel.reduced > 0) {
      // Outside the innermost loop: a store for each output, or lanes folded into one.
      const terms = product(shape.slice(rank));
      cost += d < rank ? writeCost(kernel.write.strides[d]) / terms : 40 / terms;
    }
    // Short innermost loops cost for their beginning.
    cost = cost / used + 12 / n;
    if (cost < least) {
      least = cost;
      best = d;
    }
  }
  return best;
}

/**
 * Attention on the cpu: a unit computes a block of queries of one head. Scores, then the softmax of
 * each row, then the product with the values; keys that no query of the block sees are passed over.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import {
  add,
  blockSize,
  type Code,
  eachTile,
  emitDotTile,
  f32,
  f32x4,
  i32,
  type KernelFunc,
  type Local,
  most,
  mul,
  v128,
  type WasmProgram,
  type WasmStage,
  type WasmTarget,
} from "../../wasm.ts";
import {
  emitRowProduct,
  emitScores,
  keyCount,
  keyRange,
  type Layout,
  layoutOf,
  packStage,
  panelBytes,
  panelsOf,
  rowOf,
  seenBy,
  Visible,
} from "./wasm_blocks.ts";

/** With at most so many queries, packing the keys would cost more than it saves. */
const FEW = 4;

/** The program of attention. */
export function forwardProgram(call: CallKernel, target: WasmTarget): WasmProgram {
  const layout = layoutOf(call, 1, target);
  const { batches, heads, queries, keys, depth, block, blocks, line } = layout;
  if (batches * heads * queries * depth === 0) return { stages: [], workspace: 0, scratch: 0 };
  const packed = queries > FEW;
  const stages: WasmStage[] = packed ? [packStage(layout, [1])] : [];
  const seen = layout.causal && queries > 1 ? keys / 2 + 1 : keys;
  stages.push({
    units: batches * heads * blocks,
    cost: batches * heads * queries * seen * (depth / (packed ? 7 : 3) + 2),
    build: (f) => emitBlock(f, layout, packed),
  });
  return {
    stages,
    workspace: packed ? panelBytes(layout) : 0,
    // The scores, and 1 / Σ of each row.
    scratch: 4 * block * (line + 4),
  };
}

function emitBlock(f: KernelFunc, layout: Layout, packed: boolean): void {
  const { heads, kvHeads, queries, depth, block, blocks, line, q, k, v } = layout;
  const head = f.let(i32.div_u(f.unit, blocks));
  const b = f.let(i32.div_u(head, heads));
  const h = f.let(i32.rem_u(head, heads));
  const kvHead = f.let(i32.div_u(h, heads / kvHeads));
  const first = f.let(mul(i32.rem_u(f.unit, blocks), block));
  const rows = blockSize(queries, block, first);
  const count = f.let(rows);
  const keys = keyCount(f, layout);
  const { low, high } = keyRange(f, layout, keys, first, add(first, count, -1));
  // Panels begin at multiples of 8.
  const start = f.let(i32.and(low, -layout.panel));
  const left = f.let(rowOf(f.input(0), q, b, h, first));
  const position = f.let(add(keys, -queries, first));
  const scores = f.scratch;
  if (packed) {
    const panels = f.let(panelsOf(f, layout, 0, add(mul(b, kvHeads), kvHead)));
    emitScores(f, layout, left, 4 * q.strides[2], count, position, panels, start, high, scores);
  } else {
    emitDots(f, layout, left, f.let(rowOf(f.input(1), k, b, kvHead, start)), start, high);
  }
  const inverses = f.let(add(scores, 4 * block * line));
  f.for(0, count, 1, (r) => {
    const row = f.let(add(first, r));
    const visible = new Visible(f, layout, keys, low, high, { b, h, row });
    const line4 = f.let(add(scores, mul(r, 4 * line)));
    const { max, sum } = emitSoftmax(
      f,
      layout,
      visible,
      line4,
      start,
      seenBy(f, layout, position, high, r),
    );
    const none = f32x4.eq(sum, v128.zero());
    const inverse = v128.andnot(f32x4.div(f.vectors.constant(1), sum), none);
    f.store(add(inverses, mul(r, 16)), inverse);
    const lse = v128.andnot(f32x4.add(max, f.vectors.log(sum)), none);
    const at = add(f.output(1), mul(add(mul(head, queries), row), 4));
    f.store(at, f32x4.extract_lane(lse, 0));
  });
  const out = f.let(
    add(f.output(0), mul(add(mul(add(mul(b, queries), first), heads), h), 4 * depth)),
  );
  const outRow = 4 * heads * depth;
  emitRowProduct(f, {
    rows: count,
    columns: depth,
    depth: i32.sub(high, start),
    a: scores,
    aRow: 4 * line,
    aDepth: 4,
    b: rowOf(f.input(2), v, b, kvHead, start),
    bDepth: 4 * v.strides[2],
    c: out,
    cRow: outRow,
    accumulate: false,
    within: (row) => ({
      to: f.let(most(i32.sub(seenBy(f, layout, position, high, row), start), 0)),
    }),
  });
  f.for(0, count, 1, (r) => {
    const inverse = f.let(v128.load(add(inverses, mul(r, 16))));
    const at = f.let(add(out, mul(r, outRow)));
    f.for(0, depth - depth % 4, 4, () => {
      f.store(at, f32x4.mul(v128.load(at), inverse));
      f.set(at, add(at, 16));
    });
    const one = f.let(f32x4.extract_lane(inverse, 0));
    for (let i = 0; i < depth % 4; i++) f.store(at, f32.mul(f32.load(at, 4 * i), one), 4 * i);
  });
}

/** Scores of few queries, from the keys as they lie. */
function emitDots(
  f: KernelFunc,
  { queries, depth, line, q, k }: Layout,
  left: Local,
  keys: Local,
  start: Local,
  high: Local,
): void {
  const tiles = (key: Local, columns: number) =>
    eachTile(f, queries, 2, (row, rows) => {
      emitDotTile(
        f,
        f.vectors,
        {
          rows,
          columns,
          aRow: 4 * q.strides[2],
          bRow: 4 * k.strides[2],
          cRow: 4 * line,
          aType: "f32",
          bType: "f32",
          depth,
        },
        add(left, mul(row, 4 * q.strides[2])),
        add(keys, mul(i32.sub(key, start), 4 * k.strides[2])),
        add(f.scratch, mul(row, 4 * line), mul(i32.sub(key, start), 4)),
      );
    });
  const key = f.let(start);
  f.upTo(key, add(high, -3), 4, () => tiles(key, 4));
  f.upTo(key, high, 1, () => tiles(key, 1));
}

/** Turns a row of products at `line` into e^(score - max); the maximum and the sum, in all lanes. */
function emitSoftmax(
  f: KernelFunc,
  { scale }: Layout,
  visible: Visible,
  line: Local,
  start: Local,
  high: Local,
): { max: Local; sum: Local } {
  const hidden = f.vectors.constant(-Infinity);
  const factor = f.vectors.constant(scale);
  const max = f.let(hidden);
  const key = f.let(start);
  const at = f.let(line);
  f.upTo(key, high, 4, () => {
    const score = f32x4.mul(v128.load(at), factor);
    const x = f.let(v128.bitselect(score, hidden, visible.lanes(key)));
    f.store(at, x);
    f.set(max, f32x4.pmax(max, x));
    f.set(at, add(at, 16));
  });
  const across = (fold: (a: Code, b: Code) => Code, x: Local) => {
    f.set(x, fold(x, v128.shuffle(x, x, [2, 3, 0, 1])));
    f.set(x, fold(x, v128.shuffle(x, x, [1, 0, 3, 2])));
  };
  across(f32x4.pmax, max);
  // Where there is no key, the maximum is 0 and each power e^-inf = 0.
  f.set(max, v128.andnot(max, f32x4.eq(max, hidden)));
  const sum = f.let(v128.zero());
  f.set(key, start);
  f.set(at, line);
  f.upTo(key, high, 4, () => {
    const p = f.vectors.exp(f32x4.sub(v128.load(at), max));
    f.store(at, p);
    f.set(sum, f32x4.add(sum, p));
    f.set(at, add(at, 16));
  });
  across(f32x4.add, sum);
  return { max, sum };
}

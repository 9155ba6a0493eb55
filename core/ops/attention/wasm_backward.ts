/**
 * The gradient of attention on the cpu. Scores are computed again from the log-sum-exp, block by
 * block. Where there are heads enough, a unit owns one head of keys and computes all three gradients;
 * else one stage computes dq by blocks of queries, and another dk and dv by blocks of keys.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import {
  add,
  f32x4,
  i32,
  type Int,
  type KernelFunc,
  least,
  type Local,
  most,
  mul,
  parts,
  TILE,
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
  looksBack,
  packStage,
  panelBytes,
  panelsOf,
  rowOf,
  seenBy,
  Visible,
} from "./wasm_blocks.ts";

/** From so many heads of keys on, each is a unit of its own. */
const HEADS = 8;
/** Keys of a block, where a head's are divided. */
const KEYS = 64;

/** Which gradients a unit computes. */
interface Wants {
  readonly dq: boolean;
  readonly dkv: boolean;
}

/** The program of attention's gradient. */
export function backwardProgram(call: CallKernel, target: WasmTarget): WasmProgram {
  const layout = layoutOf(call, 2, target);
  const { batches, heads, kvHeads, queries, keys, depth, block, blocks, line } = layout;
  if (batches * heads * depth === 0) return { stages: [], workspace: 0, scratch: 0 };
  const seen = layout.causal && queries > 1 ? keys / 2 + 1 : keys;
  const product = batches * heads * queries * seen * depth / 12;
  const wide = batches * kvHeads >= HEADS;
  const stages: WasmStage[] = [packStage(layout, [1, 2])];
  if (wide) {
    stages.push({
      units: batches * kvHeads,
      cost: 5 * product,
      build: (f) => emitHead(f, call, layout, f.unit, 0, keys, { dq: true, dkv: true }),
    });
  } else {
    if (queries > 0) {
      stages.push({
        units: batches * heads * blocks,
        cost: 3 * product,
        build: (f) => {
          const head = f.let(i32.div_u(f.unit, blocks));
          const b = f.let(i32.div_u(head, heads));
          const h = f.let(i32.rem_u(head, heads));
          const first = f.let(mul(i32.rem_u(f.unit, blocks), block));
          emitBlock(f, call, layout, { b, h, first, low: 0, high: keys }, {
            dq: true,
            dkv: false,
          });
        },
      });
    }
    const keyBlocks = parts(keys, KEYS);
    stages.push({
      units: batches * kvHeads * keyBlocks,
      cost: 4 * product,
      build: (f) => {
        const head = f.let(i32.div_u(f.unit, keyBlocks));
        const low = f.let(mul(i32.rem_u(f.unit, keyBlocks), KEYS));
        const high = f.let(least(add(low, KEYS), keys));
        emitHead(f, call, layout, head, low, high, { dq: false, dkv: true });
      },
    });
  }
  return {
    stages,
    workspace: 2 * panelBytes(layout),
    scratch: 2 * 4 * block * line,
  };
}

/** All queries of all heads that share keys and values, against the keys from `low` to `high`. */
function emitHead(
  f: KernelFunc,
  call: CallKernel,
  layout: Layout,
  kvHead: Int,
  low: Int,
  high: Int,
  wants: Wants,
): void {
  const { heads, kvHeads, keys, depth, queries, block } = layout;
  const b = f.let(i32.div_u(kvHead, kvHeads));
  const kv = f.let(i32.rem_u(kvHead, kvHeads));
  f.for(low, high, 1, (key) => {
    const at = mul(add(mul(add(mul(b, keys), key), kvHeads), kv), 4 * depth);
    f.zero(add(f.output(1), at), 4 * depth);
    f.zero(add(f.output(2), at), 4 * depth);
  });
  const group = heads / kvHeads;
  f.for(0, group, 1, (member) => {
    const h = f.let(add(mul(kv, group), member));
    f.for(0, queries, block, (first) => {
      emitBlock(f, call, layout, { b, h, first, low, high }, wants);
    });
  });
}

/** One block of queries of one head against the keys from `low`, a multiple of 8, to `high`. */
function emitBlock(
  f: KernelFunc,
  call: CallKernel,
  layout: Layout,
  place: {
    readonly b: Local;
    readonly h: Local;
    readonly first: Local;
    readonly low: Int;
    readonly high: Int;
  },
  wants: Wants,
): void {
  const { heads, kvHeads, queries, keys: all, depth, block, line, q, k } = layout;
  const { b, h, first } = place;
  const at = layout.mask ? 4 : 3;
  const dout = call.inputs[at];
  const kvHead = f.let(i32.div_u(h, heads / kvHeads));
  const rows = f.let(least(i32.sub(queries, first), block));
  const keys = keyCount(f, layout);
  const range = keyRange(f, layout, keys, first, add(first, rows, -1));
  const low = f.let(most(range.low, place.low));
  const high = f.let(least(range.high, place.high));
  const start = f.let(i32.and(low, -layout.panel));
  const count = f.let(most(i32.sub(high, start), 0));
  const queriesAt = f.let(rowOf(f.input(0), q, b, h, first));
  const doutAt = f.let(rowOf(f.input(at), dout, b, h, first));
  const panel = f.let(add(mul(b, kvHeads), kvHead));
  const position = f.let(add(keys, -queries, first));
  const weights = f.let(f.scratch);
  const slopes = f.let(add(f.scratch, 4 * block * line));
  const scores = (which: number, left: Local, stride: number, to: Local) =>
    emitScores(
      f,
      layout,
      left,
      4 * stride,
      rows,
      position,
      f.let(panelsOf(f, layout, which, panel)),
      start,
      high,
      to,
    );
  scores(0, queriesAt, q.strides[2], weights);
  scores(1, doutAt, dout.strides[2], slopes);

  f.for(0, rows, 1, (r) => {
    const row = f.let(add(first, r));
    const visible = new Visible(f, layout, keys, low, high, { b, h, row });
    const ofRow = (input: number) => {
      const operand = call.inputs[input];
      const [sb, sh, st] = operand.strides;
      const index = add(mul(b, sb), mul(h, sh), mul(row, st), operand.offset);
      return f.let(v128.load32_splat(add(f.input(input), mul(index, 4))));
    };
    const lse = ofRow(at + 1);
    const delta = ofRow(at + 2);
    const scale = f.vectors.constant(layout.scale);
    const weight = f.let(add(weights, mul(r, 4 * line)));
    const slope = f.let(add(slopes, mul(r, 4 * line)));
    // Tiles of the keys' gradients reach over the last key that a row sees.
    const end = seenBy(f, layout, position, high, r, TILE.rows - 1);
    const key = f.let(start);
    f.upTo(key, end, 4, () => {
      const seen = f.let(visible.lanes(key));
      const score = f32x4.sub(f32x4.mul(v128.load(weight), scale), lse);
      const p = f.let(v128.and(f.vectors.exp(score), seen));
      f.store(weight, p);
      const change = f32x4.mul(f32x4.mul(p, scale), f32x4.sub(v128.load(slope), delta));
      f.store(slope, v128.and(change, seen));
      f.set(weight, add(weight, 16));
      f.set(slope, add(slope, 16));
    });
  });

  const outRow = 4 * heads * depth;
  const out = mul(add(mul(add(mul(b, queries), first), heads), h), 4 * depth);
  if (wants.dq) {
    emitRowProduct(f, {
      rows,
      columns: depth,
      depth: count,
      a: slopes,
      aRow: 4 * line,
      aDepth: 4,
      b: rowOf(f.input(1), k, b, kvHead, start),
      bDepth: 4 * k.strides[2],
      c: add(f.output(0), out),
      cRow: outRow,
      accumulate: false,
      within: (row) => ({
        to: f.let(most(i32.sub(seenBy(f, layout, position, high, row), start), 0)),
      }),
    });
  }
  if (!wants.dkv) return;
  const keyRow = 4 * kvHeads * depth;
  const keyAt = f.let(mul(add(mul(add(mul(b, all), start), kvHeads), kvHead), 4 * depth));
  /** The first query of the block that sees key `start + row`. */
  const firstSeer = (row: Local) => {
    const query = f.let(most(f.let(i32.sub(add(start, row), position)), 0));
    return f.let(least(query, rows));
  };
  const towards = (output: number, a: Local, b: Local, stride: number) =>
    emitRowProduct(f, {
      rows: count,
      columns: depth,
      depth: rows,
      a,
      aRow: 4,
      aDepth: 4 * line,
      b,
      bDepth: 4 * stride,
      c: add(f.output(output), keyAt),
      cRow: keyRow,
      accumulate: true,
      within: (row) => looksBack(layout) ? { from: firstSeer(row) } : {},
    });
  towards(1, slopes, queriesAt, q.strides[2]);
  towards(2, weights, doutAt, dout.strides[2]);
}

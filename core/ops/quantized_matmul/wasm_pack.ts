/**
 * A packed matrix brought into the panels that tiles of a product take, and into rows of floats.
 *
 * @module
 */

import {
  add,
  type Code,
  f32x4,
  i32,
  type Int,
  int,
  type KernelFunc,
  least,
  type Local,
  mul,
  v128,
} from "../../wasm.ts";
import type { Packing } from "../dequantize.ts";
import type { Panel } from "../matmul/wasm.ts";
import { interleaved, levels, nibbles } from "./wasm_codes.ts";

/** Lines or columns that are brought in together. */
const WIDTH = 8;

/** Byte i of four for each line, of the lines 0 to 3 (first operand) and 4 to 7: [line][step] -> [step][line]. */
const STEPS = [0, 1, 2, 3].map((step) => [0, 1, 2, 3, 4, 5, 6, 7].map((line) => 4 * line + step));
const EVEN = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => 2 * i);

/** Address of the codes of row `row` from column `column` (a multiple of 4) on. */
function codesAt({ format, columns }: Packing, f: KernelFunc, row: Int, column: Int): Code {
  const shift = format === "nf4" ? 1 : 0;
  return add(f.input(1), mul(row, columns >> shift), i32.shr_u(column, shift));
}

/** Address of the scale of row `row` at `column`. */
function scaleAt({ columns, block }: Packing, f: KernelFunc, row: Int, column: Int): Code {
  return add(f.input(2), mul(add(mul(row, columns / block), i32.div_u(column, block)), 4));
}

/** Packs the rows of W from `panel.column` on as the columns of Wᵀ; depth runs along each row. */
export function packRows(f: KernelFunc, w: Packing, panel: Panel): void {
  for (let first = 0; first < f.target.columns; first += WIDTH) packEightRows(f, w, panel, first);
}

function packEightRows(f: KernelFunc, w: Packing, panel: Panel, first: number): void {
  const rows = Array.from({ length: WIDTH }, (_, j) => {
    const { constant } = int(panel.valid);
    const line = constant === f.target.columns ? first + j : least(first + j, add(panel.valid, -1));
    return f.let(add(panel.column, line));
  });
  const from = rows.map((row) => f.let(codesAt(w, f, row, 0)));
  const k = f.let(panel.depth);
  const end = f.let(add(panel.depth, panel.count));
  const target = f.let(add(panel.to, 4 * first));
  const shift = w.format === "nf4" ? 1 : 0;
  f.repeat(() => {
    // The steps up to the end of a block have the same scales.
    const scales = [0, 4].map((v) => {
      const four = rows.slice(v, v + 4).map((row) => scaleAt(w, f, row, k));
      const lanes = f.let(v128.load32_zero(four[0]));
      four.slice(1).forEach((at, i) => f.set(lanes, v128.load32_lane(at, lanes, i + 1)));
      return lanes;
    });
    const until = f.let(least(end, f.let(mul(add(i32.div_u(k, w.block), 1), w.block))));
    f.upTo(k, until, 4, () => {
      const offset = f.let(i32.shr_u(k, shift));
      const at = from.map((row) => add(row, offset));
      // Two vectors of codes, each of two steps of all lines.
      fourSteps(f, w, at).forEach((codes, half) => {
        levels(f, w.format, codes).forEach((level, v) => {
          const step = 2 * half + (v >> 1);
          const place = 4 * f.target.columns * step + 16 * (v & 1);
          f.store(target, f32x4.mul(level, scales[v & 1]), place);
        });
      });
      f.set(target, add(target, 16 * f.target.columns));
    });
    return i32.lt_s(k, end);
  });
}

/** The codes of four steps of eight lines, each line's at an address: [steps 0 and 1], [steps 2 and 3]. */
function fourSteps(f: KernelFunc, { format }: Packing, at: readonly Code[]): [Code, Code] {
  if (format === "nf4") {
    const pairs = f.let(v128.zero());
    at.forEach((address, line) => f.set(pairs, v128.load16_lane(address, pairs, line)));
    const { low, high } = nibbles(f, pairs);
    const odd = EVEN.map((i) => i + 1);
    const both = (order: number[]): number[] => [...order, ...order.map((i) => 16 + i)];
    return [
      f.let(v128.shuffle_bytes(low, high, both(EVEN))),
      f.let(v128.shuffle_bytes(low, high, both(odd))),
    ];
  }
  const [a, b] = [at.slice(0, 4), at.slice(4)].map((four) => {
    const lanes = f.let(v128.load32_zero(four[0]));
    four.slice(1).forEach((address, i) => f.set(lanes, v128.load32_lane(address, lanes, i + 1)));
    return lanes;
  });
  return [
    f.let(v128.shuffle_bytes(a, b, [...STEPS[0], ...STEPS[1]])),
    f.let(v128.shuffle_bytes(a, b, [...STEPS[2], ...STEPS[3]])),
  ];
}

/** Packs columns of W from `panel.column` on; depth runs along the rows of W. */
export function packColumns(f: KernelFunc, w: Packing, panel: Panel): void {
  for (let first = 0; first < f.target.columns; first += WIDTH) {
    packEightColumns(f, w, panel, first);
  }
}

function packEightColumns(f: KernelFunc, w: Packing, panel: Panel, first: number): void {
  const column = f.let(add(panel.column, first));
  const codes = f.let(codesAt(w, f, panel.depth, column));
  const scales = f.let(scaleAt(w, f, panel.depth, column));
  // The second four columns may be of another block, and past the end: whatever is read there is not used.
  const next = w.block % WIDTH === 0
    ? null
    : f.let(scaleAt(w, f, panel.depth, least(add(column, 4), w.columns - 1)));
  const codesEach = w.format === "nf4" ? w.columns / 2 : w.columns;
  const scalesEach = 4 * w.columns / w.block;
  const target = f.let(add(panel.to, 4 * first));
  const steps = (count: number): void => {
    eachTwoRows(f, w, codes, codesEach, count).forEach((two, half) => {
      levels(f, w.format, two).slice(0, 4 * (count - 2 * half)).forEach((level, v) => {
        const row = 2 * half + (v >> 1);
        if (row >= count) return;
        const from = v & 1 ? next ?? scales : scales;
        const scale = v128.load32_splat(from, row * scalesEach);
        const place = 4 * f.target.columns * row + 16 * (v & 1);
        f.store(target, f32x4.mul(level, scale), place);
      });
    });
    f.set(codes, add(codes, count * codesEach));
    f.set(scales, add(scales, count * scalesEach));
    if (next) f.set(next, add(next, count * scalesEach));
    f.set(target, add(target, 4 * f.target.columns * count));
  };
  const k = f.let(0);
  f.upTo(k, add(panel.count, -3), 4, () => steps(4));
  f.upTo(k, panel.count, 1, () => steps(1));
}

/** The eight codes of one row, or of each of four, from address `at` on: two rows a vector. */
function eachTwoRows(
  f: KernelFunc,
  { format }: Packing,
  at: Local,
  bytes: number,
  count: number,
): Code[] {
  if (format === "int8") {
    return Array.from({ length: Math.ceil(count / 2) }, (_, half) => {
      const two = f.let(v128.load64_zero(at, 2 * half * bytes));
      if (2 * half + 1 < count) f.set(two, v128.load64_lane(at, two, 1, (2 * half + 1) * bytes));
      return two;
    });
  }
  const words = f.let(v128.load32_zero(at));
  for (let row = 1; row < count; row++) {
    f.set(words, v128.load32_lane(at, words, row, row * bytes));
  }
  const pair = nibbles(f, words);
  return [false, true].slice(0, Math.ceil(count / 2)).map((upper) => interleaved(f, pair, upper));
}

/** Row `row` of W as floats, [columns], from address `to` on. */
export function unpackRow(f: KernelFunc, w: Packing, row: Code, to: Code): void {
  const codes = f.let(codesAt(w, f, row, 0));
  const scales = f.let(scaleAt(w, f, row, 0));
  const target = f.let(to);
  const some = (scale: Code, count: number): void => {
    const bytes = w.format === "nf4"
      ? interleaved(f, nibbles(f, f.let(v128.load64_zero(codes))))
      : f.let(v128.load(codes));
    levels(f, w.format, bytes).slice(0, count / 4).forEach((level, v) => {
      f.store(target, f32x4.mul(level, scale), 16 * v);
    });
    f.set(codes, add(codes, w.format === "nf4" ? count / 2 : count));
    f.set(target, add(target, 4 * count));
  };
  f.for(0, w.columns / w.block, 1, () => {
    const scale = f.let(v128.load32_splat(scales));
    if (w.block >= 16) f.for(0, Math.floor(w.block / 16), 1, () => some(scale, 16));
    if (w.block % 16 !== 0) some(scale, w.block % 16);
    f.set(scales, add(scales, 4));
  });
}

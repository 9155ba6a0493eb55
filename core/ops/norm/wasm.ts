/**
 * The gradient of a norm on the cpu. A unit owns some rows, and goes through each twice: for the two
 * means that its input's gradient needs, adding to the unit's part of the weight's and the bias's
 * gradient on the way, and for the gradient itself. A last stage adds the units' parts up.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import {
  add,
  type Code,
  f32x4,
  f64x2,
  firstLanes,
  i32,
  type KernelFunc,
  least,
  loadSplat,
  type Local,
  mul,
  parts,
  storeColumns,
  v128,
  type WasmProgram,
  type WasmStage,
} from "../../wasm.ts";

/** Terms that are added up in f32 before the sum goes on in f64: rows of a unit, vectors of a row. */
const SEQUENTIAL = 64;
/** Units where there are rows enough. */
const UNITS = 32;
/** Rows side by side: they share loads of the weight and of the sums over rows. */
const SIDE = 2;

/** The program of a norm's gradient; inputs and outputs as {@linkcode CallKernel.attrs} tell. */
export function normGradientWasm(call: CallKernel): WasmProgram {
  const { n, d } = rowsOf(call);
  const sums = call.outputs.length - 1;
  if (d === 0) return { stages: [], workspace: 0, scratch: 0 };
  const each = Math.max(1, Math.min(SEQUENTIAL, Math.ceil(n / UNITS)));
  const units = parts(n, each);
  const stages: WasmStage[] = [{
    units,
    cost: 0.6 * n * d,
    build: (f) => new Rows(f, call).emit(each),
  }];
  if (sums > 0) {
    stages.push({ units: 1, cost: sums * units * d / 8, build: (f) => addParts(f, call, units) });
  }
  return { stages, workspace: 4 * units * sums * padded(d), scratch: 0 };
}

/** x [..., D] as n rows of d. */
function rowsOf(call: CallKernel): { n: number; d: number } {
  const { shape } = call.outputs[0];
  const d = shape[shape.length - 1];
  return { n: shape.slice(0, -1).reduce((n, size) => n * size, 1), d };
}

/** Elements of a sum over rows in the workspace: whole vectors. */
function padded(d: number): number {
  return 4 * parts(d, 4);
}

/** Emits what a unit does. */
class Rows {
  readonly #f: KernelFunc;
  readonly #call: CallKernel;
  readonly #d: number;
  readonly #mean: number | null;
  readonly #weight: number | null;

  constructor(f: KernelFunc, call: CallKernel) {
    this.#f = f;
    this.#call = call;
    this.#d = rowsOf(call).d;
    const { centred, weighted } = call.attrs;
    this.#mean = centred ? 3 : null;
    this.#weight = weighted ? call.inputs.length - 1 : null;
  }

  emit(each: number): void {
    const f = this.#f;
    const { n } = rowsOf(this.#call);
    const sums = this.#call.outputs.length - 1;
    const bytes = 4 * sums * padded(this.#d);
    const part = f.let(add(f.workspace(), mul(f.unit, bytes)));
    if (sums > 0) f.zero(part, bytes);
    const row = f.let(mul(f.unit, each));
    const end = f.let(least(add(row, each), n));
    f.upTo(row, add(end, 1 - SIDE), SIDE, () => this.#rows(row, SIDE, part));
    f.upTo(row, end, 1, () => this.#rows(row, 1, part));
  }

  /** Address of a row of an input. */
  #at(input: number, row: Code): Local {
    const { shape, offset } = this.#call.inputs[input];
    const bytes = 4 * shape[shape.length - 1];
    return this.#f.let(add(this.#f.input(input), mul(row, bytes), 4 * offset));
  }

  #rows(first: Local, side: number, part: Local): void {
    const f = this.#f;
    const d = this.#d;
    const { vectors } = f;
    const rows = Array.from({ length: side }, (_, u) => {
      const row = f.let(add(first, u));
      const scale = f.let(loadSplat(f, "f32", this.#at(2, row)));
      // x̂ = x · scale + shift
      const shift = this.#mean === null
        ? null
        : f.let(f32x4.neg(f32x4.mul(loadSplat(f, "f32", this.#at(this.#mean, row)), scale)));
      const out = f.let(add(f.output(0), mul(row, 4 * d)));
      const zero = () => f.let(v128.zero());
      return {
        x: this.#at(0, row),
        g: this.#at(1, row),
        out,
        scale,
        shift,
        level: new Total(f, zero()),
        slope: new Total(f, zero()),
      };
    });
    const weight = this.#weight === null
      ? null
      : f.let(add(f.input(this.#weight), 4 * this.#call.inputs[this.#weight].offset));
    // The unit's part of the weight's gradient, and how far on the bias's lies.
    const [dw, db] = this.#call.attrs.weight ? [part, 4 * padded(d)] : [null, 0];
    const load = (base: Local, column: Local, left: number): Local =>
      f.let(firstOf(f, v128.load(add(base, column)), left));
    const product = (g: Local, w: Local | null) => w ? f.let(f32x4.mul(g, w)) : g;

    const block = 16 * SEQUENTIAL;
    f.for(0, 4 * d, block, (start) => {
      const column = f.let(start);
      const to = 4 * d <= block ? 4 * d : f.let(least(add(start, block), 4 * d));
      this.#columns(column, to, (left) => {
        const w = weight && load(weight, column, left);
        const sum = dw && f.let(v128.load(add(dw, column)));
        const bias = this.#call.attrs.bias ? f.let(v128.load(add(part, column), db)) : null;
        for (const r of rows) {
          const g = load(r.g, column, left);
          const x = load(r.x, column, left);
          const y = f.let(
            r.shift ? vectors.madd(x, r.scale, r.shift) : f32x4.mul(x, r.scale),
          );
          const h = product(g, w);
          if (r.shift) f.set(r.level.lanes, f32x4.add(r.level.lanes, h));
          f.set(r.slope.lanes, vectors.madd(h, y, r.slope.lanes));
          if (sum) f.set(sum, vectors.madd(g, y, sum));
          if (bias) f.set(bias, f32x4.add(bias, g));
        }
        if (sum) f.store(add(dw, column), sum);
        if (bias) f.store(add(part, column), bias, db);
      });
      for (const r of rows) {
        r.slope.flush();
        if (r.shift) r.level.flush();
      }
    });
    // dx = scale · (h - level - x̂ · slope) = h · scale + x · factor + rest
    const affine = rows.map((r) => {
      const slope = f.let(f32x4.mul(r.slope.mean(d), r.scale));
      const factor = f.let(f32x4.neg(f32x4.mul(slope, r.scale)));
      const rest = r.shift &&
        f.let(f32x4.neg(vectors.madd(slope, r.shift, f32x4.mul(r.level.mean(d), r.scale))));
      return { factor, rest };
    });
    const column = f.let(0);
    this.#columns(column, 4 * d, (left) => {
      const w = weight && load(weight, column, left);
      rows.forEach((r, u) => {
        const { factor, rest } = affine[u];
        const x = load(r.x, column, left);
        const h = product(load(r.g, column, left), w);
        const pull = rest ? vectors.madd(x, factor, rest) : f32x4.mul(x, factor);
        const dx = f.let(vectors.madd(h, r.scale, pull));
        storeColumns(f, add(r.out, column), dx, left, 0);
      });
    });
  }

  /** Walks `column`, in bytes, up to `to`: whole vectors, and what is left of the row's last. */
  #columns(column: Local, to: Code | number, step: (left: number) => void): void {
    const f = this.#f;
    f.upTo(column, add(to, -15), 16, () => step(4));
    if (this.#d % 4 > 0) f.if(i32.lt_s(column, to), () => step(this.#d % 4));
  }
}

/** The first `left` lanes, the others 0. */
function firstOf(f: KernelFunc, value: Code, left: number): Code {
  if (left === 4) return value;
  return v128.and(value, firstLanes(f, left));
}

/** The sum of a row, which goes on from f32 into f64. */
class Total {
  readonly lanes: Local;
  readonly #f: KernelFunc;
  readonly #wide: Local;

  constructor(f: KernelFunc, lanes: Local) {
    this.#f = f;
    this.lanes = lanes;
    this.#wide = f.let(f64x2.const(0));
  }

  flush(): void {
    const f = this.#f;
    const { low, high } = halves(this.lanes);
    f.set(this.#wide, f64x2.add(this.#wide, f64x2.add(low, high)));
    f.set(this.lanes, v128.zero());
  }

  /** The sum over d, in all lanes. */
  mean(d: number): Code {
    const wide = this.#wide;
    const sum = f64x2.add(wide, v128.shuffle(wide, wide, [2, 3, 2, 3]));
    const mean = f32x4.demote_f64x2_zero(f64x2.mul(sum, this.#f.hoist(f64x2.const(1 / d))));
    const one = this.#f.let(mean);
    return v128.shuffle(one, one, [0, 0, 0, 0]);
  }
}

/** Two lanes each as f64. */
function halves(value: Local): { low: Code; high: Code } {
  return {
    low: f64x2.promote_low_f32x4(value),
    high: f64x2.promote_low_f32x4(v128.shuffle(value, value, [2, 3, 2, 3])),
  };
}

/** Adds the units' parts of the sums over rows: [units, sums, D] → [D] each. */
function addParts(f: KernelFunc, call: CallKernel, units: number): void {
  const { d } = rowsOf(call);
  const sums = call.outputs.length - 1;
  const line = 4 * padded(d);
  for (let s = 0; s < sums; s++) {
    const column = f.let(0);
    const step = (left: number) => {
      const [low, high] = [f.let(f64x2.const(0)), f.let(f64x2.const(0))];
      const from = f.let(add(f.workspace(), column, s * line));
      f.for(0, units, 1, () => {
        const part = halves(f.let(v128.load(from)));
        f.set(low, f64x2.add(low, part.low));
        f.set(high, f64x2.add(high, part.high));
        f.set(from, add(from, sums * line));
      });
      const sum = f.let(
        v128.shuffle(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), [0, 1, 4, 5]),
      );
      storeColumns(f, add(f.output(1 + s), column), sum, left, 0);
    };
    f.upTo(column, 4 * d - 15, 16, () => step(4));
    if (d % 4 > 0) step(d % 4);
  }
}

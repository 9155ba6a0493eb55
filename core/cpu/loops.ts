/**
 * Generates the code of loop kernels. Each node of the expression is computed at the depth of the
 * innermost loop it depends on, as a vector; what is the same in all lanes is one vector of four equal
 * lanes.
 *
 * @module
 */

import { bytesOf, type DType, type Register, registerOf } from "../dtype.ts";
import { constant } from "../expr.ts";
import { bodiesOf, type LoopKernel } from "../kernel.ts";
import {
  add,
  type Code,
  f32x4,
  f64x2,
  firstLanes,
  i32,
  i32x4,
  type KernelFunc,
  least,
  type Local,
  mul,
  storeLanes,
  storeVector,
  v128,
  type WasmProgram,
  type WasmStage,
} from "../wasm.ts";
import { Body } from "./body.ts";
import { cut, layOut, type Nest, product, WIDEST } from "./nest.ts";
import { simplify } from "./space.ts";

/** Where the kernel's arrays are: addresses in the function. */
export interface Places {
  input(f: KernelFunc, index: number): Code;
  output(f: KernelFunc, index: number): Code;
}

const OWN: Places = { input: (f, i) => f.input(i), output: (f, i) => f.output(i) };

/** Terms that one lane may add up in f32 before it hands its sum on to f64. */
const SEQUENTIAL = 64;

/** The program of a loop kernel. */
export function loopProgram(kernel: LoopKernel, places: Places = OWN): WasmProgram {
  const rank = kernel.shape.length - kernel.reduced;
  const none: WasmProgram = { stages: [], workspace: 0, scratch: 0 };
  const scratch = 16 * WIDEST;
  if (kernel.shape.slice(0, rank).includes(0)) return none;
  const simple = simplify(nonEmpty(kernel));
  const nest = layOut(simple);
  if (nest.chunks === 1) {
    return { stages: [nestStage(nest, places)], workspace: 0, scratch };
  }
  // Each chunk leaves its part of every output in the workspace: [chunks, outputs].
  const type = simple.body.type;
  const last = simple.shape.slice(0, simple.shape.length - simple.reduced);
  const partial = (f: KernelFunc) => f.workspace();
  const first = nestStage(nest, { input: places.input, output: partial });
  const combine: LoopKernel = {
    ...simple,
    shape: [...last, nest.chunks],
    reduced: 1,
    body: {
      kind: "load",
      type,
      input: 0,
      strides: [...rowMajor(last), nest.outputs],
      offset: 0,
      bounds: [],
    },
    inputs: [type],
    inPlace: null,
  };
  const second = { ...layOut(simplify(combine)), wide: true };
  return {
    stages: [first, nestStage(second, { input: partial, output: places.output })],
    workspace: 4 * nest.chunks * nest.outputs,
    scratch,
  };
}

/** A reduction of nothing gives its neutral element. */
function nonEmpty(kernel: LoopKernel): LoopKernel {
  const rank = kernel.shape.length - kernel.reduced;
  if (!kernel.shape.includes(0)) return kernel;
  return {
    ...kernel,
    shape: kernel.shape.slice(0, rank),
    reduced: 0,
    body: constant(kernel.body.type, neutral(kernel.combine!, kernel.body.type)),
  };
}

function rowMajor(shape: readonly number[]): number[] {
  return shape.map((_, d) => product(shape.slice(d + 1)));
}

function nestStage(nest: Nest, places: Places): WasmStage {
  const { kernel, tile, chunks } = nest;
  const n = kernel.shape[nest.vector];
  const tiles = nest.across ? 1 : Math.ceil(n / tile);
  const rows = chunks * tiles * product(nest.outer.map((d) => kernel.shape[d]));
  const { units, each } = cut(rows, nest.cost);
  return {
    units,
    cost: nest.cost,
    build: (f) => new NestEmitter(f, nest, places).emit(rows, each, tiles),
  };
}

/** The neutral element of a reduction. */
export function neutral(combine: "sum" | "prod" | "max" | "min", type: Register): number {
  if (combine === "sum") return 0;
  if (combine === "prod") return 1;
  const low = combine === "max";
  switch (type) {
    case "f32":
      return low ? -Infinity : Infinity;
    case "i32":
      return low ? -0x80000000 : 0x7fffffff;
    case "u32":
      return low ? 0 : 0xffffffff;
    case "bool":
      return low ? 0 : 1;
  }
}

function emitCombine(
  combine: "sum" | "prod" | "max" | "min",
  type: Register,
  a: Code,
  b: Code,
): Code {
  if (type === "bool") {
    return combine === "sum" || combine === "max" ? v128.or(a, b) : v128.and(a, b);
  }
  const float = type === "f32";
  switch (combine) {
    case "sum":
      return float ? f32x4.add(a, b) : i32x4.add(a, b);
    case "prod":
      return float ? f32x4.mul(a, b) : i32x4.mul(a, b);
    case "max":
      return float ? f32x4.max(a, b) : type === "i32" ? i32x4.max_s(a, b) : i32x4.max_u(a, b);
    case "min":
      return float ? f32x4.min(a, b) : type === "i32" ? i32x4.min_s(a, b) : i32x4.min_u(a, b);
  }
}

/** Emits one nest into one function. */
class NestEmitter {
  readonly #f: KernelFunc;
  readonly #nest: Nest;
  readonly #body: Body;
  /** Addresses of the outputs of the current row. */
  #outs!: readonly Code[];
  /** What chunk the row belongs to. */
  #chunk: Code | null = null;
  readonly #dtype: DType;
  readonly #strides: readonly number[];
  readonly #places: Places;

  constructor(f: KernelFunc, nest: Nest, places: Places) {
    this.#f = f;
    this.#nest = nest;
    this.#places = places;
    this.#body = new Body(f, nest, places.input);
    const { kernel } = nest;
    // A chunk's part is held as the register is, row-major.
    const partial = nest.chunks > 1;
    this.#dtype = partial ? kernel.body.type : kernel.output;
    this.#strides = partial
      ? rowMajor(kernel.shape.slice(0, kernel.shape.length - kernel.reduced))
      : kernel.write.strides;
    if (!partial && registerOf(kernel.output) !== kernel.body.type) {
      throw new Error(
        `${kernel.label}: an output of ${kernel.output} needs a ${
          registerOf(kernel.output)
        } expression; got ${kernel.body.type}`,
      );
    }
  }

  emit(rows: number, each: number, tiles: number): void {
    const f = this.#f;
    const { kernel, outer, chunks, tile, vector } = this.#nest;
    this.#body.enter(0);
    const bases = bodiesOf(kernel).map((_, k) => f.let(this.#base(k)));
    const first = f.let(mul(f.unit, each));
    const end = f.let(least(add(first, each), rows));
    f.upTo(first, end, 1, () => {
      let rest: Code = first;
      const split = (n: number): Code => {
        if (n === 1) return i32.const(0);
        const digit = f.let(i32.rem_u(rest, n));
        rest = f.let(i32.div_u(rest, n));
        return digit;
      };
      // The outermost digit needs no division.
      const dims = [...outer].reverse();
      dims.forEach((d, i) => {
        const whole = i === dims.length - 1 && chunks === 1 && tiles === 1;
        this.#body.coordinates[d] = whole ? rest : split(kernel.shape[d]);
      });
      const from = f.let(tiles === 1 ? 0 : mul(chunks === 1 ? rest : split(tiles), tile));
      this.#chunk = chunks > 1 ? rest : null;
      this.#body.enter(1);
      const terms = outer.map((d) =>
        mul(this.#body.coordinates[d], this.#strides[d] * bytesOf(this.#dtype))
      );
      if (this.#chunk) terms.push(mul(this.#chunk, 4 * this.#nest.outputs));
      this.#outs = bases.map((base) => terms.length === 0 ? base : f.let(add(base, ...terms)));
      const n = kernel.shape[vector];
      const to = tile === n ? i32.const(n) : f.let(least(add(from, tile), n));
      if (this.#nest.across) this.#reduceAcross();
      else this.#alongOutput(from, to);
    });
  }

  #base(index: number): Code {
    const { write } = this.#nest.kernel;
    const address = this.#places.output(this.#f, index);
    if (this.#nest.chunks > 1) return address;
    const bytes = bytesOf(this.#dtype);
    const moved = write.slot === undefined
      ? 0
      : mul(this.#f.scalar(write.slot), (write.stride ?? 0) * bytes);
    return add(address, write.offset * bytes, moved);
  }

  /** Vectors along an output dimension: pointwise, or a reduction with one lane an output. */
  #alongOutput(from: Local, to: Code): void {
    const { kernel } = this.#nest;
    this.#body.vectors(from, to, (count, left) => {
      if (kernel.reduced === 0) {
        // All is computed, and so read, before any of it is stored.
        const values = bodiesOf(kernel).map((body) => this.#body.value(body));
        values.forEach((value, output) => this.#store(output, from, value, left));
        return;
      }
      const sums = new Sums(this.#f, this.#nest, count);
      this.#terms(0, sums, SEQUENTIAL, () => {
        const value = this.#body.value(kernel.body);
        for (let u = 0; u < count; u++) sums.add(u, value[u]);
      });
      this.#store(0, from, sums.result(), left);
    });
  }

  /** Vectors along a reduced dimension: each row's lanes are folded into one output. */
  #reduceAcross(): void {
    const f = this.#f;
    const { kernel, unroll, vector, chunked, chunk } = this.#nest;
    const n = kernel.shape[vector];
    const sums = new Sums(f, this.#nest, unroll);
    const span = (from: Code, to: Code) => {
      const i = f.let(from);
      this.#body.vectors(i, to, (count, left) => {
        const value = this.#body.value(kernel.body);
        for (let u = 0; u < count; u++) sums.add(u, left ? sums.first(value[u], left) : value[u]);
      });
    };
    this.#terms(0, sums, SEQUENTIAL * 4 * unroll, () => {
      let from: Code = i32.const(0);
      let to: Code = i32.const(n);
      if (chunked === vector) {
        from = f.let(mul(this.#chunk!, chunk));
        to = f.let(least(add(from, chunk), n));
      }
      const block = SEQUENTIAL * 4 * unroll;
      if (!sums.wide || n <= block) return span(from, to);
      f.for(from, to, block, (start) => {
        span(start, f.let(least(add(start, block), to)));
        sums.flush();
      });
    });
    const [total] = sums.fold();
    storeLanes(f, this.#dtype, [this.#outs[0], null, null, null], total);
  }

  /**
   * The loops over reduced dimensions from number k on, around `term`. Sums are handed on once a lane
   * may have added `budget` terms of this loop's inner ones.
   */
  #terms(k: number, sums: Sums, budget: number, term: () => void): void {
    const f = this.#f;
    const { kernel, loops, chunked, chunk, across, vector } = this.#nest;
    if (k === loops.length) return term();
    const d = loops[k];
    const n = kernel.shape[d];
    const inner = product(loops.slice(k + 1).map((l) => kernel.shape[l])) *
      (across ? kernel.shape[vector] : 1);
    let from: Code = i32.const(0);
    let to: Code = i32.const(n);
    if (d === chunked) {
      from = f.let(mul(this.#chunk!, chunk));
      to = f.let(least(add(from, chunk), n));
    }
    const run = (start: Code, stop: Code) =>
      f.for(start, stop, 1, (c) => {
        this.#body.scoped(() => {
          this.#body.coordinates[d] = c;
          this.#body.enter(this.#nest.level[d]);
          this.#terms(k + 1, sums, budget, term);
        });
      });
    // Here is where to hand on: the inner loops stay within the budget, this one does not.
    if (!sums.wide || inner > budget || inner * n <= budget) {
      run(from, to);
      if (sums.wide && k === 0 && inner <= budget) sums.flush();
      return;
    }
    const step = Math.max(1, Math.floor(budget / inner));
    f.for(from, to, step, (start) => {
      run(start, f.let(least(add(start, step), to)));
      sums.flush();
    });
  }

  /** Stores vectors of an output that lie one after the other, from coordinate i on. */
  #store(output: number, i: Local, values: readonly Code[], left: number | null): void {
    const f = this.#f;
    const bytes = bytesOf(this.#dtype);
    const stride = this.#strides[this.#nest.vector] * bytes;
    const at = f.let(add(this.#outs[output], mul(i, stride)));
    values.forEach((value, u) => {
      if (stride === bytes && left === null) {
        return storeVector(f, this.#dtype, at, value, 4 * u * bytes);
      }
      const addresses = [0, 1, 2, 3].map((j) =>
        left === null || j < left ? add(at, (4 * u + j) * stride) : null
      );
      storeLanes(f, this.#dtype, addresses, value);
    });
  }
}

/** The accumulators of a reduction. A long sum of f32 goes on into f64 from time to time. */
class Sums {
  readonly wide: boolean;
  readonly #f: KernelFunc;
  readonly #combine: "sum" | "prod" | "max" | "min";
  readonly #type: Register;
  readonly #lanes: readonly Local[];
  /** Lanes that have seen a NaN: extremes of f32 are found by instructions that pass it over. */
  readonly #nans: readonly Local[];
  /** The f64 sums of the low and of the high lanes. */
  readonly #low: readonly Local[];
  readonly #high: readonly Local[];
  readonly #neutral: Code;

  constructor(f: KernelFunc, nest: Nest, count: number) {
    const { kernel } = nest;
    this.#f = f;
    this.#combine = kernel.combine!;
    this.#type = kernel.body.type;
    const value = neutral(this.#combine, this.#type);
    this.#neutral = f.hoist(
      this.#type === "f32"
        ? f32x4.const(value)
        : i32x4.const(this.#type === "bool" ? -value : value),
    );
    this.#lanes = Array.from({ length: count }, () => f.let(this.#neutral));
    const each = nest.terms / nest.chunks / (nest.across ? 4 * count : 1);
    this.wide = this.#combine === "sum" && this.#type === "f32" &&
      (nest.wide || each > SEQUENTIAL);
    const extreme = this.#type === "f32" && (this.#combine === "max" || this.#combine === "min");
    this.#nans = extreme ? this.#lanes.map(() => f.let(v128.zero())) : [];
    const make = () => this.wide ? this.#lanes.map(() => f.let(v128.zero())) : [];
    this.#low = make();
    this.#high = make();
  }

  add(u: number, value: Code): void {
    const f = this.#f;
    const lane = this.#lanes[u];
    if (this.#nans.length > 0) {
      const x = f.let(value);
      const fold = this.#combine === "max" ? f32x4.pmax : f32x4.pmin;
      f.set(this.#nans[u], v128.or(this.#nans[u], f32x4.ne(x, x)));
      return f.set(lane, fold(lane, x));
    }
    f.set(lane, emitCombine(this.#combine, this.#type, lane, value));
  }

  /** `value` in the first `left` lanes, else the neutral element. */
  first(value: Code, left: number): Code {
    return v128.bitselect(value, this.#neutral, firstLanes(this.#f, left));
  }

  /** Hands the f32 sums on. */
  flush(): void {
    const f = this.#f;
    if (f.target.columns === 16) {
      // V8 looks for pairs of vectors from stores side by side backwards: here are some.
      this.#lanes.forEach((lane, u) => f.store(f.scratch, lane, 16 * u));
      this.#lanes.forEach((lane, u) => f.set(lane, v128.load(f.scratch, 16 * u)));
    }
    this.#lanes.forEach((lane, u) => {
      const high = v128.shuffle(lane, lane, [2, 3, 2, 3]);
      f.set(this.#low[u], f64x2.add(this.#low[u], f64x2.promote_low_f32x4(lane)));
      f.set(this.#high[u], f64x2.add(this.#high[u], f64x2.promote_low_f32x4(high)));
      f.set(lane, this.#neutral);
    });
  }

  #markNans(): void {
    this.#nans.forEach((nan, u) => {
      this.#f.set(this.#lanes[u], v128.or(this.#lanes[u], nan));
    });
  }

  /** One vector of results for each accumulator. */
  result(): Code[] {
    this.#markNans();
    if (!this.wide) return [...this.#lanes];
    this.flush();
    return this.#lanes.map((_, u) =>
      this.#f.let(v128.shuffle(
        f32x4.demote_f64x2_zero(this.#low[u]),
        f32x4.demote_f64x2_zero(this.#high[u]),
        [0, 1, 4, 5],
      ))
    );
  }

  /** All accumulators and lanes combined, in lane 0, in a fixed order. */
  fold(): Code[] {
    const f = this.#f;
    this.#markNans();
    if (this.wide) {
      this.flush();
      const parts = [...this.#low, ...this.#high];
      const sum = f.let(parts.reduce<Code>((a, b) => f64x2.add(a, b), f64x2.const(0)));
      f.set(sum, f64x2.add(sum, v128.shuffle(sum, sum, [2, 3, 2, 3])));
      return [f.let(f32x4.demote_f64x2_zero(sum))];
    }
    const combine = (a: Code, b: Code) => emitCombine(this.#combine, this.#type, a, b);
    const sum = f.let(this.#lanes.reduce<Code>(combine, this.#neutral));
    f.set(sum, combine(sum, v128.shuffle(sum, sum, [2, 3, 2, 3])));
    f.set(sum, combine(sum, v128.shuffle(sum, sum, [1, 1, 1, 1])));
    return [sum];
  }
}

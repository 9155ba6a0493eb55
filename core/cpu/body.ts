/**
 * Emits a loop kernel's expression, level by level: entering a loop computes what depends on its
 * coordinate and on nothing further in.
 *
 * @module
 */

import { bytesOf } from "../dtype.ts";
import type { Expr, Fetch, Load } from "../expr.ts";
import {
  add,
  choose,
  type Code,
  f32x4,
  i32,
  i32x4,
  type Int,
  type KernelFunc,
  least,
  loadLanes,
  loadSplat,
  loadVector,
  type Local,
  most,
  mul,
  v128,
} from "../wasm.ts";
import { emitApply } from "./apply.ts";
import { dependsOn, type Nest } from "./nest.ts";

/** What is known at some depth of the nest. */
interface Known {
  /** The value of a node: one vector for each unrolled step, or a single one for all. */
  readonly values: Map<Expr, readonly Local[]>;
  /** The address of a load so far, without the vector dimension. */
  readonly addresses: Map<Expr, Code>;
  /** Whether the bounds hold so far, as a mask. */
  readonly masks: Map<Expr, Local>;
}

/** The expression of a nest, in one function. */
export class Body {
  /** Coordinates of the loops entered so far. */
  readonly coordinates: Code[] = [];
  readonly #f: KernelFunc;
  readonly #nest: Nest;
  readonly #input: (f: KernelFunc, index: number) => Code;
  readonly #depends: Map<Expr, boolean>;
  readonly #levels = new Map<Expr, number>();
  #known: Known = { values: new Map(), addresses: new Map(), masks: new Map() };
  /** The vectors at hand: their first coordinate, how many, and the lanes left of a tail. */
  #at: Local | null = null;
  #count = 1;
  #left: number | null = null;

  constructor(f: KernelFunc, nest: Nest, input: (f: KernelFunc, index: number) => Code) {
    this.#f = f;
    this.#nest = nest;
    this.#input = input;
    this.#depends = dependsOn(nest.nodes, nest.vector);
    for (const e of nest.nodes) this.#levels.set(e, this.#levelOf(e));
  }

  #levelOf(e: Expr): number {
    const { level } = this.#nest;
    const of = (strides: readonly number[]) => strides.map((s, d) => s === 0 ? 0 : level[d]);
    switch (e.kind) {
      case "index":
        return level[e.dim];
      case "load":
        return Math.max(0, ...of(e.strides), ...e.bounds.map((b) => level[b.dim]));
      case "fetch":
        return Math.max(0, ...of(e.strides), ...e.at.map((a) => this.#levels.get(a.index)!));
      case "apply":
        return Math.max(0, ...e.args.map((a) => this.#levels.get(a)!));
      default:
        return 0;
    }
  }

  /** Computes all that is known once the loops of `level` are entered. */
  enter(level: number): void {
    for (const e of this.#nest.nodes) {
      if (e.kind === "load" || e.kind === "fetch") this.#address(e, level);
      if (this.#levels.get(e) === level) this.#known.values.set(e, this.#compute(e));
    }
  }

  /** The vectors of a node, one for each unrolled step. */
  value(e: Expr): readonly Local[] {
    const values = this.#known.values.get(e)!;
    return values.length === this.#count
      ? values
      : Array.from({ length: this.#count }, () => values[0]);
  }

  /** What becomes known within `emit` is forgotten after it. */
  scoped(emit: () => void): void {
    const before = this.#known;
    this.#known = {
      values: new Map(before.values),
      addresses: new Map(before.addresses),
      masks: new Map(before.masks),
    };
    emit();
    this.#known = before;
  }

  /**
   * Walks the vector dimension from `i` to `to` and enters its level: as many unrolled steps as fit,
   * then single vectors, then what is left of the last one.
   */
  vectors(i: Local, to: Code, emit: (count: number, left: number | null) => void): void {
    const f = this.#f;
    const { kernel, vector, unroll } = this.#nest;
    const n = kernel.shape[vector];
    const step = (count: number, left: number | null) =>
      this.scoped(() => {
        this.#at = i;
        this.#count = count;
        this.#left = left;
        this.enter(this.#nest.level[vector]);
        emit(count, left);
        this.#at = null;
        this.#count = 1;
        this.#left = null;
      });
    const bound = (count: number) => add(to, 1 - 4 * count);
    if (unroll > 1) f.upTo(i, bound(unroll), 4 * unroll, () => step(unroll, null));
    if (n >= 4 && (unroll === 1 || n % (4 * unroll) >= 4)) {
      f.upTo(i, bound(1), 4, () => step(1, null));
    }
    if (n % 4 !== 0) {
      if (n < 4) step(1, n % 4);
      else f.if(i32.lt_s(i, to), () => step(1, n % 4));
    }
  }

  /** Adds what `level` contributes to the address of a load, and to whether it is in bounds. */
  #address(e: Load | Fetch, level: number): void {
    const f = this.#f;
    const { kernel, vector } = this.#nest;
    const bytes = bytesOf(kernel.inputs[e.input]);
    const bounds = e.kind === "load" ? e.bounds : [];
    const terms: Code[] = [];
    let valid: Code | null = null;
    const require = (condition: Code) => {
      valid = valid === null ? condition : i32.and(valid, condition);
    };
    e.strides.forEach((stride, d) => {
      if (d === vector || this.#nest.level[d] !== level) return;
      let c: Int = this.coordinates[d];
      for (const b of bounds) {
        if (b.dim !== d) continue;
        require(i32.lt_u(add(c, -b.low), b.high - b.low));
        c = f.let(least(f.let(most(c, b.low)), b.high - 1));
      }
      if (stride !== 0) terms.push(mul(c, stride * bytes));
    });
    if (e.kind === "fetch") {
      for (const a of e.at) {
        if (this.#depends.get(a.index) || this.#levels.get(a.index) !== level) continue;
        const index = f.let(i32x4.extract_lane(this.#known.values.get(a.index)![0], 0));
        const inside = f.let(i32.lt_u(index, a.size));
        require(inside);
        terms.push(mul(choose(inside, index, 0), a.stride * bytes));
      }
    }
    if (level === 0) terms.push(add(this.#input(f, e.input), e.offset * bytes));
    if (terms.length > 0) {
      const before = this.#known.addresses.get(e);
      this.#known.addresses.set(e, f.let(add(...(before ? [before] : []), ...terms)));
    }
    if (valid !== null) {
      const mask = i32x4.splat(i32.sub(0, valid));
      const before = this.#known.masks.get(e);
      this.#known.masks.set(e, f.let(before ? v128.and(before, mask) : mask));
    }
  }

  #compute(e: Expr): readonly Local[] {
    const f = this.#f;
    const count = this.#depends.get(e) ? this.#count : 1;
    const each = (make: (u: number) => Code) => f.interleave(count, (u) => f.let(make(u)));
    switch (e.kind) {
      case "const":
        return [f.hoist(
          e.type === "f32"
            ? f32x4.const(e.value)
            : i32x4.const(e.type === "bool" ? (e.value !== 0 ? -1 : 0) : e.value),
        )];
      case "scalar": {
        const bits = i32x4.splat(f.scalar(e.slot));
        return [f.let(e.type === "bool" ? i32x4.ne(bits, v128.zero()) : bits)];
      }
      case "index":
        return e.dim === this.#nest.vector
          ? each((u) => this.#lanes(u))
          : [f.let(i32x4.splat(this.coordinates[e.dim]))];
      case "acc":
        throw new Error(`${this.#nest.kernel.label}: a loop kernel has no kernel's result to read`);
      case "apply": {
        const args = e.args.map((a) => this.#known.values.get(a)!);
        const uniform = e.args.map((a) => !this.#depends.get(a));
        return each((u) => emitApply(f, e, args.map((a) => a[u] ?? a[0]), uniform));
      }
      default: {
        const mask = this.#known.masks.get(e);
        const bytes = bytesOf(this.#nest.kernel.inputs[e.input]);
        // One address for all: only then V8 sees that vectors lie side by side, and makes pairs.
        const at = this.#walks(e)
          ? f.let(add(this.#known.addresses.get(e)!, mul(this.#at!, bytes)))
          : null;
        return each((u) => {
          const value = at
            ? loadVector(f, this.#nest.kernel.inputs[e.input], at, 4 * u * bytes)
            : this.#load(e, u);
          return mask ? v128.and(value, mask) : value;
        });
      }
    }
  }

  /** The coordinates of the lanes of vector u. */
  #lanes(u: number): Code {
    const first = i32x4.splat(this.#at!);
    const steps = [0, 1, 2, 3].map((j) => 4 * u + j);
    return i32x4.add(first, this.#f.hoist(i32x4.const(...steps)));
  }

  /** Whether the lanes of a load are elements side by side, all of them there. */
  #walks(e: Load | Fetch): boolean {
    const { vector } = this.#nest;
    return e.strides[vector] === 1 &&
      (e.kind === "load"
        ? e.bounds.every((b) => b.dim !== vector)
        : e.at.every((a) => !this.#depends.get(a.index)));
  }

  #load(e: Load | Fetch, u: number): Code {
    const f = this.#f;
    const { kernel, vector } = this.#nest;
    const dtype = kernel.inputs[e.input];
    const bytes = bytesOf(dtype);
    const address = this.#known.addresses.get(e)!;
    const stride = e.strides[vector];
    if (e.kind === "fetch" && e.at.some((a) => this.#depends.get(a.index))) {
      return this.#gather(e, u);
    }
    const bounds = e.kind === "load" ? e.bounds.filter((b) => b.dim === vector) : [];
    if (stride === 0 && bounds.length === 0) return loadSplat(f, dtype, address);
    let value: Code;
    if (stride === 0) {
      value = loadSplat(f, dtype, address);
    } else if (stride === 1) {
      // Lanes out of bounds may stand up to three elements off either end.
      let c: Code = add(this.#at!, 4 * u);
      for (const b of bounds) c = f.let(least(f.let(most(f.let(c), b.low - 3)), b.high - 1));
      value = loadVector(f, dtype, add(address, mul(c, bytes)));
    } else {
      const at = bounds.length === 0 && this.#left === null
        ? f.let(add(address, mul(this.#at!, stride * bytes)))
        : null;
      const addresses = [0, 1, 2, 3].map((j) => {
        if (at) return add(at, (4 * u + j) * stride * bytes);
        let c = this.#lane(u, j);
        for (const b of bounds) c = f.let(least(f.let(most(f.let(c), b.low)), b.high - 1));
        return f.let(add(address, mul(c, stride * bytes)));
      });
      value = loadLanes(f, dtype, addresses);
    }
    for (const b of bounds) {
      const from = i32x4.sub(this.#lanes(u), f.hoist(i32x4.const(b.low)));
      value = v128.and(value, i32x4.lt_u(from, f.hoist(i32x4.const(b.high - b.low))));
    }
    return value;
  }

  /** The coordinate of a lane; a lane beyond the end repeats the last one. */
  #lane(u: number, j: number): Code {
    const own = this.#left === null || j < this.#left ? j : this.#left - 1;
    return add(this.#at!, 4 * u + own);
  }

  /** A fetch whose index differs from lane to lane. */
  #gather(e: Fetch, u: number): Code {
    const f = this.#f;
    const { kernel, vector } = this.#nest;
    const dtype = kernel.inputs[e.input];
    const bytes = bytesOf(dtype);
    const stride = e.strides[vector];
    let valid: Code | null = null;
    let offsets: Code | null = null;
    for (const a of e.at) {
      if (!this.#depends.get(a.index)) continue;
      const values = this.#known.values.get(a.index)!;
      const index = values[u] ?? values[0];
      const inside = f.let(i32x4.lt_u(index, f.hoist(i32x4.const(a.size))));
      const safe = i32x4.mul(
        v128.and(index, inside),
        f.hoist(i32x4.const(a.stride * bytes)),
      );
      valid = valid === null ? inside : f.let(v128.and(valid, inside));
      offsets = offsets === null ? safe : i32x4.add(offsets, safe);
    }
    const lanes = f.let(offsets!);
    const address = this.#known.addresses.get(e)!;
    const addresses = [0, 1, 2, 3].map((j) =>
      add(
        add(address, i32x4.extract_lane(lanes, j)),
        stride === 0 ? 0 : mul(this.#lane(u, j), stride * bytes),
      )
    );
    return v128.and(loadLanes(f, dtype, addresses), valid!);
  }
}

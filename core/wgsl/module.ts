/**
 * A WGSL module under construction: its bindings, typed access to them, and the helper functions it
 * uses.
 *
 * @module
 */

import { type DType, type Register, registerOf } from "../dtype.ts";
import { preludeOf } from "./prelude.ts";
import type { WgslBinding, WgslPass, WgslSource, WgslTarget } from "./program.ts";

/** How an array is bound. */
export type Access =
  /** Read only. */
  | "read"
  /** Written by at most one invocation a word, and perhaps read. */
  | "write"
  /** As `write`; two invocations may each write a half of a word. */
  | "halves";

/** A module that collects bindings and helpers while its code is written. */
export class WgslModule {
  /** The device the module is for. */
  readonly target: WgslTarget;
  readonly #bindings: (WgslBinding & { type: string })[] = [];
  readonly #helpers = new Set<string>();
  readonly #scalars: readonly Register[];
  #scalarBinding = -1;
  readonly #parameters: number[] = [];
  #parameterBinding = -1;
  #names = 0;
  #directive = "";

  /** A module for `target`; `scalars` are the types of the kernel's per-step values. */
  constructor(target: WgslTarget, scalars: readonly Register[] = []) {
    this.target = target;
    this.#scalars = scalars;
  }

  /** A name not used before. */
  name(prefix = "v"): string {
    return `${prefix}${this.#names++}`;
  }

  /** Adds a helper function of the prelude and returns its name. */
  use(helper: string): string {
    this.#helpers.add(helper);
    return helper;
  }

  /** Lane `lane`'s value of an expression, in a subgroup that runs as one. */
  broadcast(value: string, lane: number): string {
    this.#directive = this.target.subgroup!.directive;
    return `subgroupBroadcast(${value}, ${lane}u)`;
  }

  /** Binds `source` as an array with elements of the WGSL type `type`; returns the variable. */
  bind(source: WgslSource, type: string, write = false): string {
    this.#bindings.push({ source, write, type });
    return `b${this.#bindings.length - 1}`;
  }

  /** Binds `source` as an array of `dtype`. */
  array(source: WgslSource, dtype: DType, access: Access = "read"): WgslArray {
    const packed = dtype === "f16" || dtype === "bf16";
    const type = packed || dtype === "bool" ? "u32" : dtype;
    const atomic = access === "halves" && packed;
    const variable = this.bind(source, atomic ? "atomic<u32>" : type, access !== "read");
    return new WgslArray(this, variable, dtype, type, atomic);
  }

  /** A per-step value. */
  scalar(slot: number): string {
    const type = this.#scalars[slot];
    if (!type) {
      throw new Error(`WGSL: needs scalar ${slot}, and the kernel has ${this.#scalars.length}`);
    }
    if (this.#scalarBinding < 0) {
      this.#bindings.push({ source: { kind: "scalars" }, write: false, type: "" });
      this.#scalarBinding = this.#bindings.length - 1;
    }
    const word = `b${this.#scalarBinding}[${slot >> 2}u].${"xyzw"[slot & 3]}`;
    return type === "u32"
      ? word
      : type === "bool"
      ? `(${word} != 0u)`
      : `bitcast<${type}>(${word})`;
  }

  /**
   * A size or a stride, as an expression of `type`. For a software device it is read from a uniform,
   * so that one pipeline serves kernels that differ in sizes alone: compiling takes most of a first
   * step there. Else it is a literal, which a GPU's compiler computes with.
   */
  parameter(value: number, type: "u32" | "i32" = "u32"): string {
    if (!this.target.software) return type === "u32" ? `${value}u` : `${value}`;
    if (this.#parameterBinding < 0) {
      this.#bindings.push({ source: { kind: "parameters" }, write: false, type: "" });
      this.#parameterBinding = this.#bindings.length - 1;
    }
    const slot = this.#parameters.push(value) - 1;
    const word = `b${this.#parameterBinding}[${slot >> 2}u].${"xyzw"[slot & 3]}`;
    return type === "u32" ? word : `bitcast<i32>(${word})`;
  }

  /** The finished pass. `body` holds functions and the entry point. */
  pass(body: string, workgroups: readonly [number, number, number], cost: number): WgslPass {
    const uniform = { scalars: this.#scalars.length, parameters: this.#parameters.length };
    const declarations = this.#bindings.map((b, i) =>
      b.source.kind === "scalars" || b.source.kind === "parameters"
        ? `@group(0) @binding(${i}) var<uniform> b${i}: array<vec4<u32>, ${
          Math.ceil(uniform[b.source.kind] / 4)
        }>;`
        : `@group(0) @binding(${i}) var<storage, ${
          b.write ? "read_write" : "read"
        }> b${i}: array<${b.type}>;`
    );
    return {
      code: [this.#directive, ...declarations, preludeOf(this.#helpers), body].filter((s) =>
        s !== ""
      ).join("\n"),
      bindings: this.#bindings.map(({ source, write }) => ({ source, write })),
      parameters: Uint32Array.from(this.#parameters),
      workgroups,
      cost,
    };
  }
}

/** A bound array whose elements are read and written as registers. */
export class WgslArray {
  readonly #module: WgslModule;
  readonly #variable: string;
  readonly #dtype: DType;
  readonly #type: string;
  readonly #atomic: boolean;

  /** Made by {@linkcode WgslModule.array}. */
  constructor(module: WgslModule, variable: string, dtype: DType, type: string, atomic: boolean) {
    this.#module = module;
    this.#variable = variable;
    this.#dtype = dtype;
    this.#type = type;
    this.#atomic = atomic;
  }

  /** The same memory seen as another dtype of the same width. */
  as(dtype: DType): WgslArray {
    return new WgslArray(this.#module, this.#variable, dtype, this.#type, this.#atomic);
  }

  #word(index: string): string {
    return this.#atomic
      ? `atomicLoad(&${this.#variable}[${index}])`
      : `${this.#variable}[${index}]`;
  }

  /** The element at `address`, an i32 or u32 expression without side effects. */
  load(address: string): string {
    const dtype = this.#dtype;
    if (dtype === "f16") {
      return `unpack2x16float(${
        this.#word(`(${address}) >> 1u`)
      } >> (16u * (u32(${address}) & 1u))).x`;
    }
    if (dtype === "bf16") {
      return `bitcast<f32>((${
        this.#word(`(${address}) >> 1u`)
      } >> (16u * (u32(${address}) & 1u))) << 16u)`;
    }
    const word = this.#word(address);
    if (dtype === "bool") return `(${this.#type === "u32" ? word : `bitcast<u32>(${word})`} != 0u)`;
    return this.#type === dtype ? word : `bitcast<${dtype}>(${word})`;
  }

  /** The 16 bits of `value`, for a 16-bit array. */
  half(value: string): string {
    return `${this.#module.use(this.#dtype === "f16" ? "to_f16" : "to_bf16")}(${value})`;
  }

  /** Statements that store `value`; for a 16-bit array bound with `halves` only. */
  store(address: string, value: string): string {
    const v = this.#variable;
    if (this.#dtype === "f16" || this.#dtype === "bf16") {
      if (!this.#atomic) throw new Error("WgslArray.store: a 16-bit array must be bound as halves");
      const [bits, shift] = [this.#module.name("h"), this.#module.name("s")];
      // Neighbours in one word may be written at the same time: each clears and sets its own half.
      // The value first: it may be computed from the element that is cleared.
      return `let ${bits} = ${this.half(value)};
  let ${shift} = 16u * (u32(${address}) & 1u);
  atomicAnd(&${v}[(${address}) >> 1u], ~(0xffffu << ${shift}));
  atomicOr(&${v}[(${address}) >> 1u], ${bits} << ${shift});`;
    }
    const bits = this.#dtype === "bool" ? `select(0u, 1u, ${value})` : value;
    const from = this.#dtype === "bool" ? "u32" : registerOf(this.#dtype);
    return `${v}[${address}] = ${from === this.#type ? bits : `bitcast<${this.#type}>(${bits})`};`;
  }

  /** Stores two neighbouring 16-bit elements as word `word`, given their bits. */
  storeWord(word: string, low: string, high: string): string {
    const bits = `(${low}) | ((${high}) << 16u)`;
    return this.#atomic
      ? `atomicStore(&${this.#variable}[${word}], ${bits});`
      : `${this.#variable}[${word}] = ${bits};`;
  }
}

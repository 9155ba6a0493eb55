/**
 * What a WASM generator is told, and what it gives back.
 *
 * @module
 */

import { type Code, i32, type Int, least } from "./code.ts";
import { Func, type ModuleBuilder } from "./func.ts";
import { Vectors } from "./vectors.ts";

/** The machine code is generated for. Results must not depend on the number of threads. */
export interface WasmTarget {
  /** Threads that take part. */
  readonly threads: number;
  /** Whether relaxed SIMD, and so a fused multiply-add, is there. */
  readonly relaxed: boolean;
  /**
   * Columns of a register tile of products: 8, which 16 registers of four lanes hold, or 16 where the
   * engine makes one register of eight lanes of two.
   */
  readonly columns: 8 | 16;
}

/**
 * One stage of a kernel: units of work that may run at once and in any order. A stage begins when the
 * one before is complete.
 */
export interface WasmStage {
  readonly units: number;
  /** The number of the first unit; default 0. */
  readonly first?: number;
  /** Nanoseconds that all units take together, roughly: a short stage is not worth a second thread. */
  readonly cost: number;
  /** Emits the code of unit {@linkcode KernelFunc.unit}. Stages with the same `build` share code. */
  readonly build: (f: KernelFunc) => void;
}

/** A kernel's code: stages that run in order. */
export interface WasmProgram {
  readonly stages: readonly WasmStage[];
  /** Bytes all threads share from stage to stage, 0 for none. */
  readonly workspace: number;
  /** Bytes each thread has to itself while it runs a unit. */
  readonly scratch: number;
}

/** The function of a stage, with what a kernel is bound to. */
export class KernelFunc extends Func {
  readonly module: ModuleBuilder;
  readonly target: WasmTarget;
  /** The unit to work on. */
  readonly unit: Code;
  /** Address of this thread's scratch. */
  readonly scratch: Code;
  /** Instructions on vectors, as the target has them. */
  readonly vectors: Vectors;
  readonly #inputs: number;
  readonly #outputs: number;

  constructor(module: ModuleBuilder, target: WasmTarget, inputs: number, outputs: number) {
    super(["i32", "i32", "i32"]);
    this.module = module;
    this.target = target;
    this.unit = this.params[1];
    this.scratch = this.params[2];
    this.vectors = new Vectors(this, target.relaxed);
    this.#inputs = inputs;
    this.#outputs = outputs;
  }

  /** Address of input `index`; the epilogue's inputs follow the kernel's. */
  input(index: number): Code {
    return this.#argument(index);
  }

  /** Address of output `index`. */
  output(index: number): Code {
    return this.#argument(this.#inputs + index);
  }

  /** Address of the workspace. */
  workspace(): Code {
    return this.#argument(this.#inputs + this.#outputs);
  }

  /** The bits of scalar `slot`. */
  scalar(slot: number): Code {
    return this.hoist(i32.load(this.#argument(this.#inputs + this.#outputs + 1), 4 * slot));
  }

  #argument(index: number): Code {
    return this.hoist(i32.load(this.params[0], 4 * index));
  }
}

/** `ceil(n / d)`. */
export function parts(n: number, d: number): number {
  return Math.ceil(n / d);
}

/** How many of `n` elements a block of `size` that begins at `start` holds. */
export function blockSize(n: number, size: number, start: Code): Int {
  return n % size === 0 ? size : i32.sub(least(i32.add(start, size), n), start);
}

/**
 * Compiles kernels: generates their stages once for each {@linkcode kernelKey}, and assembles all that
 * a program needs and has not seen into one WASM module.
 *
 * @module
 */

import { loopProgram } from "./loops.ts";
import type { Memory } from "./memory.ts";
import type { Pool } from "./pool.ts";
import { type CallKernel, epilogueLoop, type Kernel, kernelKey, outputsOf } from "../kernel.ts";
import {
  KernelFunc,
  ModuleBuilder,
  type WasmProgram,
  type WasmStage,
  type WasmTarget,
} from "../wasm.ts";

/** A stage, and where its function stands in the threads' tables once it is compiled. */
export interface CompiledStage {
  readonly stage: WasmStage;
  entry: number;
}

/** A kernel's program. */
export interface CompiledKernel {
  readonly kernel: Kernel;
  readonly workspace: number;
  readonly scratch: number;
  readonly stages: readonly CompiledStage[];
}

/** Generates and compiles kernels, and remembers them. */
export class Compiler {
  /** WASM functions compiled so far. */
  functions = 0;
  readonly #kernels = new Map<string, CompiledKernel>();
  readonly #memory: Memory;
  readonly #pool: Pool;
  readonly #target: WasmTarget;

  constructor(memory: Memory, pool: Pool, target: WasmTarget) {
    this.#memory = memory;
    this.#pool = pool;
    this.#target = target;
  }

  /** The stages of `kernel`; their functions may not be compiled yet. */
  plan(kernel: Kernel): CompiledKernel {
    const key = kernelKey(kernel);
    let compiled = this.#kernels.get(key);
    if (compiled === undefined) {
      const program = kernel.kind === "loop"
        ? loopProgram(kernel)
        : callProgram(kernel, this.#target);
      compiled = {
        kernel,
        workspace: program.workspace,
        scratch: program.scratch,
        stages: program.stages.filter((s) => s.units > 0).map((stage) => ({ stage, entry: -1 })),
      };
      this.#kernels.set(key, compiled);
    }
    return compiled;
  }

  /** Compiles the functions that some of `kernels` still lack. */
  compile(kernels: readonly CompiledKernel[]): void {
    const module = new ModuleBuilder(this.#memory.type);
    const waiting: { readonly stage: CompiledStage; readonly place: number }[] = [];
    let count = 0;
    for (const { kernel, stages } of new Set(kernels)) {
      const places = new Map<WasmStage["build"], number>();
      for (const stage of stages) {
        if (stage.entry >= 0) continue;
        const { build } = stage.stage;
        let place = places.get(build);
        if (place === undefined) {
          place = count++;
          places.set(build, place);
          module.add(this.#function(module, kernel, build), String(place));
        }
        waiting.push({ stage, place });
      }
    }
    if (count === 0) return;
    const entry = this.#pool.load(new WebAssembly.Module(module.encode()), count);
    for (const { stage, place } of waiting) stage.entry = entry + place;
    this.functions += count;
  }

  #function(module: ModuleBuilder, kernel: Kernel, build: WasmStage["build"]): KernelFunc {
    const inputs = kernel.inputs.length +
      (kernel.kind === "call" ? kernel.epilogue?.inputs.length ?? 0 : 0);
    const { length: outputs } = kernel.kind === "call" ? kernel.outputs : outputsOf(kernel);
    const f = new KernelFunc(module, this.#target, inputs, outputs);
    try {
      build(f);
    } catch (error) {
      throw new Error(`${kernel.label}: no code for the cpu: ${(error as Error).message}`, {
        cause: error,
      });
    }
    return f;
  }
}

/** A hand-written kernel, and after it its epilogue, a loop over the output in place. */
function callProgram(call: CallKernel, target: WasmTarget): WasmProgram {
  const program = call.op.wasm(call, target);
  if (call.epilogue === null) return program;
  const loop = epilogueLoop(call, call.epilogue);
  const after = loopProgram(loop, {
    input: (f, index) => index === loop.inPlace ? f.output(0) : f.input(index),
    output: (f) => f.output(0),
  });
  return { ...program, stages: [...program.stages, ...after.stages] };
}

/**
 * Kernels to pipelines, each compiled once.
 *
 * @module
 */

import { type Kernel, kernelKey } from "../kernel.ts";
import {
  type Aliases,
  pointwiseWgsl,
  reduceWgsl,
  type WgslBinding,
  type WgslPass,
  type WgslProgram,
  type WgslTarget,
} from "../wgsl.ts";
import { COMPUTE_STAGE } from "./device.ts";
import type { DeviceErrors, Memory } from "./memory.ts";

/** A pass ready to dispatch. */
export interface CompiledPass {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  readonly bindings: readonly WgslBinding[];
  readonly parameters: Uint32Array<ArrayBuffer>;
  readonly workgroups: readonly [number, number, number];
  readonly cost: number;
}

/** A kernel ready to bind. */
export interface CompiledKernel {
  readonly passes: readonly CompiledPass[];
  readonly workspace: number;
}

/** The caches of a device. */
export class Compiler {
  readonly #device: GPUDevice;
  readonly #memory: Memory;
  readonly #errors: DeviceErrors;
  readonly #target: WgslTarget;
  readonly #kernels = new Map<string, CompiledKernel>();
  readonly #programs = new Map<string, WgslProgram>();
  readonly #pipelines = new Map<string, GPUComputePipeline>();
  readonly #layouts = new Map<string, GPUBindGroupLayout>();

  constructor(device: GPUDevice, memory: Memory, errors: DeviceErrors, target: WgslTarget) {
    this.#device = device;
    this.#memory = memory;
    this.#errors = errors;
    this.#target = target;
  }

  /** The WGSL of `kernel`; `aliases` are the inputs that are an output's memory. */
  generate(
    kernel: Kernel,
    aliases: Aliases,
    key: string = kernelKey(kernel),
  ): WgslProgram {
    const name = `${key}|${aliases}`;
    let program = this.#programs.get(name);
    if (!program) {
      program = kernel.kind === "call"
        ? kernel.op.wgsl(kernel, this.#target)
        : kernel.reduced > 0
        ? reduceWgsl(kernel, aliases, this.#target)
        : pointwiseWgsl(kernel, aliases, this.#target);
      this.#programs.set(name, program);
    }
    return program;
  }

  /** The pipelines of `kernel`. Errors of compilation are kept for the next run to throw. */
  compile(kernel: Kernel, aliases: Aliases): CompiledKernel {
    const key = kernelKey(kernel);
    const name = `${key}|${aliases}`;
    let compiled = this.#kernels.get(name);
    if (!compiled) {
      const program = this.generate(kernel, aliases, key);
      compiled = {
        passes: program.passes.map((pass) => this.#pass(pass, kernel.label)),
        workspace: program.workspace,
      };
      this.#kernels.set(name, compiled);
    }
    return compiled;
  }

  #pass(pass: WgslPass, label: string): CompiledPass {
    const layout = this.#layout(pass.bindings, label);
    const source = `${layoutKey(pass.bindings)}\n${pass.code}`;
    let pipeline = this.#pipelines.get(source);
    if (!pipeline) {
      pipeline = this.#errors.watch(
        () => `compiling ${label}`,
        ["validation", "internal"],
        () =>
          this.#device.createComputePipeline({
            label,
            layout: this.#device.createPipelineLayout({ label, bindGroupLayouts: [layout] }),
            compute: {
              module: this.#device.createShaderModule({ label, code: pass.code }),
              entryPoint: "main",
            },
          }),
      );
      this.#memory.counters.pipelines++;
      this.#pipelines.set(source, pipeline);
    }
    const { bindings, parameters, workgroups, cost } = pass;
    return { pipeline, layout, bindings, parameters, workgroups, cost };
  }

  #layout(bindings: readonly WgslBinding[], label: string): GPUBindGroupLayout {
    const key = layoutKey(bindings);
    let layout = this.#layouts.get(key);
    if (!layout) {
      layout = this.#errors.watch(
        () => `laying out the bindings of ${label}`,
        ["validation"],
        () =>
          this.#device.createBindGroupLayout({
            label: key,
            entries: bindings.map((b, binding) => ({
              binding,
              visibility: COMPUTE_STAGE,
              buffer: {
                type: isUniform(b) ? "uniform" : b.write ? "storage" : "read-only-storage",
              },
            })),
          }),
      );
      this.#layouts.set(key, layout);
    }
    return layout;
  }
}

function isUniform({ source }: WgslBinding): boolean {
  return source.kind === "scalars" || source.kind === "parameters";
}

function layoutKey(bindings: readonly WgslBinding[]): string {
  return bindings.map((b) => isUniform(b) ? "u" : b.write ? "w" : "r").join("");
}

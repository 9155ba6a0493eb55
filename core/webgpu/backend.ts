/**
 * The webgpu backend: plans become command buffers.
 *
 * @module
 */

import {
  type Backend,
  type BackendCounters,
  type Buffer,
  type Kernel,
  outputsOf,
  type Program,
  type Results,
  type Run,
  type Step,
} from "../kernel.ts";
import type { Aliases } from "../wgsl.ts";
import { type CompiledPass, Compiler } from "./compile.ts";
import { type OpenDevice, openDevice, type WebGpuOptions } from "./device.ts";
import { DeviceErrors, Memory, STORAGE_USAGE, WebGpuBuffer } from "./memory.ts";
import { type Piece, Staging } from "./staging.ts";
import { Uniforms } from "./uniforms.ts";

export { webGpuAdapterProblem, type WebGpuOptions } from "./device.ts";

// A submission's limits: a driver may kill one that runs for seconds, and the GPU idles while a very
// long list is still being encoded.
const MOST_DISPATCHES = 1000;
const MOST_COST = 1e12;

/**
 * Opens the webgpu backend, or gives null: `webGpuAdapterProblem()` then says what is missing. A
 * software adapter is used with `software` only.
 */
export async function createWebGpuBackend(options: WebGpuOptions = {}): Promise<Backend | null> {
  const open = await openDevice(options);
  return open && new WebGpuBackend(open);
}

interface Command {
  readonly pipeline: GPUComputePipeline;
  readonly group: GPUBindGroup;
  readonly workgroups: readonly [number, number, number];
}

class WebGpuBackend implements Backend {
  readonly name = "webgpu";
  readonly description: string;
  readonly maxBindings: number;
  readonly maxBytes: number;
  readonly enqueues = true;
  readonly device: GPUDevice;
  readonly errors: DeviceErrors;
  readonly memory: Memory;
  readonly staging: Staging;
  readonly compiler: Compiler;

  constructor({ device, description, target }: OpenDevice) {
    this.device = device;
    this.description = description;
    // Scalars and parameters are uniforms; one storage binding is left for a workspace.
    this.maxBindings = device.limits.maxStorageBuffersPerShaderStage - 1;
    this.maxBytes = Math.min(
      device.limits.maxStorageBufferBindingSize,
      device.limits.maxBufferSize,
    );
    this.errors = new DeviceErrors(device);
    this.memory = new Memory(device, this.errors);
    this.staging = new Staging(this.memory, this.errors);
    this.compiler = new Compiler(device, this.memory, this.errors, target);
  }

  get counters(): BackendCounters {
    return this.memory.counters;
  }

  allocate(bytes: number): Buffer {
    return this.memory.allocate(bytes, STORAGE_USAGE, "a buffer");
  }

  free(buffer: Buffer): void {
    this.memory.free(own(buffer));
  }

  write(buffer: Buffer, data: ArrayBufferView, byteOffset = 0): void {
    const target = own(buffer);
    if (byteOffset % 4 !== 0 || byteOffset + data.byteLength > target.bytes) {
      throw new Error(
        `webgpu: write of ${data.byteLength} bytes at byte ${byteOffset} needs a whole word and room, ` +
          `and the buffer has ${target.bytes} bytes`,
      );
    }
    if (data.byteLength === 0) return;
    const words = wholeWords(data);
    this.errors.watch("writing a buffer", ["validation", "out-of-memory"], () => {
      this.device.queue.writeBuffer(
        target.gpu,
        byteOffset,
        words.buffer as ArrayBuffer,
        words.byteOffset,
        words.byteLength,
      );
    });
  }

  fill(
    buffer: Buffer,
    byteOffset: number,
    bytes: number,
    make: (into: Uint8Array<ArrayBufferLike>) => void,
  ): void {
    const data = new Uint8Array(bytes);
    make(data);
    this.write(buffer, data, byteOffset);
  }

  async read(buffer: Buffer, bytes: number, byteOffset = 0): Promise<ArrayBuffer> {
    this.errors.check();
    const source = own(buffer);
    const skip = byteOffset % 4;
    const piece = this.errors.watch("reading a buffer", ["validation"], () => {
      const encoder = this.device.createCommandEncoder({ label: "read" });
      const placed = this.staging.place(encoder, source, bytes + skip, byteOffset - skip);
      this.device.queue.submit([encoder.finish()]);
      return placed;
    });
    const [data] = await this.staging.fetch([piece]);
    await this.errors.settle();
    return skip ? data.slice(skip) : data;
  }

  workspace(kernel: Kernel): number {
    return this.compiler.generate(kernel, []).workspace;
  }

  program(steps: readonly Step[], scalarWords: number): Program {
    return new WebGpuProgram(this, steps, scalarWords);
  }

  async close(): Promise<void> {
    this.errors.close();
    // A driver may still be at work on another thread: give it up only when it is done.
    await this.device.queue.onSubmittedWorkDone().catch(() => {});
    this.staging.close();
    this.device.destroy();
  }
}

class WebGpuProgram implements Program {
  readonly #backend: WebGpuBackend;
  /** The commands of each submission. */
  readonly #submissions: Command[][] = [[]];
  readonly #labels: readonly string[];
  readonly #uniforms: Uniforms;
  #settled = false;
  #disposed = false;

  constructor(backend: WebGpuBackend, steps: readonly Step[], scalarWords: number) {
    this.#backend = backend;
    this.#labels = steps.map((step) => step.kernel.label);
    const compiled = steps.map((step) => backend.compiler.compile(step.kernel, aliasesOf(step)));
    this.#uniforms = new Uniforms(
      backend.device,
      backend.memory,
      compiled.flatMap((kernel) => kernel.passes),
      scalarWords,
    );
    let cost = 0;
    steps.forEach((step, i) => {
      for (const pass of compiled[i].passes) {
        const last = this.#submissions.at(-1)!;
        cost += pass.cost;
        const command = this.#bind(pass, step);
        if (last.length > 0 && (last.length >= MOST_DISPATCHES || cost > MOST_COST)) {
          this.#submissions.push([command]);
          cost = pass.cost;
        } else {
          last.push(command);
        }
      }
    });
  }

  #bind(pass: CompiledPass, step: Step): Command {
    const { device, errors, memory } = this.#backend;
    const { label } = step.kernel;
    const entries = pass.bindings.map(({ source }, binding): GPUBindGroupEntry => {
      switch (source.kind) {
        case "scalars": {
          const size = Math.max(16, Math.ceil(step.kernel.scalars.length / 4) * 16);
          const { buffer, scalarBytes } = this.#uniforms;
          if (!buffer || step.scalars * 4 + size > scalarBytes) {
            throw new Error(
              `webgpu: ${label} needs ${step.kernel.scalars.length} scalars from word ` +
                `${step.scalars}, and the program has ${scalarBytes / 4} words`,
            );
          }
          return {
            binding,
            resource: { buffer: buffer.gpu, offset: step.scalars * 4, size },
          };
        }
        case "parameters":
          return { binding, resource: this.#uniforms.parameters(pass) };
        case "workspace":
          if (!step.workspace) throw new Error(`webgpu: ${label} needs a workspace, and got none`);
          return { binding, resource: { buffer: own(step.workspace).gpu } };
        default: {
          const list = source.kind === "input" ? step.inputs : step.outputs;
          const buffer = list[source.index];
          if (!buffer) {
            throw new Error(
              `webgpu: ${label} needs ${source.kind} ${source.index}, and got ${list.length}`,
            );
          }
          if (buffer.bytes > this.#backend.maxBytes) {
            throw new Error(
              `webgpu: ${label} needs ${source.kind} ${source.index} of ${buffer.bytes} bytes in ` +
                `one binding, and the device allows ${this.#backend.maxBytes}`,
            );
          }
          return { binding, resource: { buffer: own(buffer).gpu } };
        }
      }
    });
    const group = errors.watch(
      () => `binding ${label}`,
      ["validation"],
      () => device.createBindGroup({ label, layout: pass.layout, entries }),
    );
    memory.counters.bindings++;
    return { pipeline: pass.pipeline, group, workgroups: pass.workgroups };
  }

  async run(run: Run): Promise<Results> {
    const { device, errors, staging } = this.#backend;
    if (this.#disposed) throw new Error("webgpu: a disposed program was run");
    errors.check();
    for (const { buffer, data } of run.uploads) this.#backend.write(buffer, data);
    const pieces: Piece[] = [];
    // All is enqueued before the first await: what is called next comes after.
    errors.watch(() => this.#describe(), ["validation", "out-of-memory"], () => {
      const uniforms = this.#uniforms.buffer;
      if (uniforms && run.scalars.length > 0) {
        device.queue.writeBuffer(uniforms.gpu, 0, run.scalars);
      }
      this.#submissions.forEach((commands, i) => {
        const last = i === this.#submissions.length - 1;
        if (commands.length === 0 && (!last || run.results.length === 0)) return;
        const encoder = device.createCommandEncoder();
        if (commands.length > 0) encode(encoder, commands);
        if (last) {
          for (const { buffer, bytes } of run.results) {
            pieces.push(staging.place(encoder, own(buffer), bytes));
          }
        }
        device.queue.submit([encoder.finish()]);
      });
      staging.drain();
    });
    // Errors of compiling and binding are waited for once. Those of a run itself are thrown by its
    // fetch or by the next run: in a browser each wait is a trip to another process.
    if (!this.#settled) await errors.settle();
    this.#settled = true;
    return {
      fetch: async () => {
        errors.check();
        const data = await staging.fetch(pieces);
        await errors.settle();
        return data;
      },
    };
  }

  #describe(): string {
    const labels = [...new Set(this.#labels)];
    return `running ${labels.slice(0, 8).join(", ")}${labels.length > 8 ? ", …" : ""}`;
  }

  dispose(): void {
    this.#disposed = true;
    if (this.#uniforms.buffer) this.#backend.memory.free(this.#uniforms.buffer);
  }
}

function encode(encoder: GPUCommandEncoder, commands: readonly Command[]): void {
  const pass = encoder.beginComputePass();
  let pipeline: GPUComputePipeline | null = null;
  for (const command of commands) {
    if (command.pipeline !== pipeline) pass.setPipeline(pipeline = command.pipeline);
    pass.setBindGroup(0, command.group);
    const [x, y, z] = command.workgroups;
    pass.dispatchWorkgroups(x, y, z);
  }
  pass.end();
}

// The inputs that are an output's own memory: a dispatch may bind a buffer it writes only once.
function aliasesOf({ kernel, inputs, outputs }: Step): Aliases {
  const aliases: [number, number][] = [];
  inputs.forEach((buffer, i) => {
    const output = outputs.indexOf(buffer);
    if (output < 0) return;
    if (kernel.kind === "loop" && outputsOf(kernel)[output].inPlace !== null) {
      aliases.push([i, output]);
    } else {
      throw new Error(
        `webgpu: ${kernel.label} needs outputs apart from its inputs, and input ${i} is one`,
      );
    }
  });
  return aliases;
}

function own(buffer: Buffer): WebGpuBuffer {
  if (!(buffer instanceof WebGpuBuffer)) {
    throw new Error("webgpu: needs a buffer of this backend, and got another's");
  }
  if (buffer.freed) throw new Error("webgpu: needs a live buffer, and got one that was freed");
  return buffer;
}

// Whole words of unshared memory, as a queue wants them.
function wholeWords(data: ArrayBufferView): Uint8Array {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const shared = typeof SharedArrayBuffer !== "undefined" &&
    data.buffer instanceof SharedArrayBuffer;
  if (data.byteLength % 4 === 0 && !shared) return bytes;
  const copy = new Uint8Array(Math.ceil(data.byteLength / 4) * 4);
  copy.set(bytes);
  return copy;
}

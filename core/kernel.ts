/**
 * What a plan is made of: kernels, as the planner hands them to a backend. A kernel says what is to
 * be computed; how is the backend's business.
 *
 * @module
 */

import type { DType, Register } from "./dtype.ts";
import { type Expr, type Load, rewrite } from "./expr.ts";
import { rowMajor } from "./shape.ts";
import type { WasmProgram, WasmTarget } from "./wasm.ts";
import type { WgslProgram, WgslTarget } from "./wgsl.ts";

/**
 * A generated kernel: a loop nest over `shape` that computes `body` at each point.
 *
 * The trailing `reduced` dimensions are reduced with `combine` (none: a pointwise kernel); the others
 * are the output's. The output element of coordinate c lies at `write.offset + Σ write.strides[d] ·
 * c[d]`, plus `scalars[write.slot] · write.stride` (an i32) where a slot is named: so a row is written
 * into a cache at a position that changes each step. Where `inPlace` names an input, that input and
 * the output are the same buffer: an element may be read only by the point that writes it.
 *
 * A pointwise kernel may have `more` outputs, of the same dtype and written at the same places: each
 * point reads all that it reads before it writes.
 */
export interface LoopKernel {
  readonly kind: "loop";
  /** What the user's ops were, for errors and profiles: "mul+add". */
  readonly label: string;
  readonly shape: readonly number[];
  readonly reduced: number;
  readonly combine: "sum" | "prod" | "max" | "min" | null;
  readonly body: Expr;
  readonly inputs: readonly DType[];
  readonly scalars: readonly Register[];
  readonly output: DType;
  readonly write: Write;
  readonly inPlace: number | null;
  readonly more?: readonly LoopOutput[];
}

/** What a pointwise kernel computes beside its first output. */
export interface LoopOutput {
  readonly body: Expr;
  readonly inPlace: number | null;
}

/** All outputs of a loop kernel. */
export function outputsOf(kernel: LoopKernel): LoopOutput[] {
  return [kernel, ...kernel.more ?? []].map(({ body, inPlace }) => ({ body, inPlace }));
}

/** The kernel with the outputs that {@linkcode outputsOf} gave, changed. */
export function withOutputs(kernel: LoopKernel, outputs: readonly LoopOutput[]): LoopKernel {
  const [first, ...more] = outputs;
  return more.length > 0 ? { ...kernel, ...first, more } : { ...kernel, ...first };
}

/** The expressions of all outputs. */
export function bodiesOf(kernel: LoopKernel): Expr[] {
  return outputsOf(kernel).map((o) => o.body);
}

/** Whether each point of a pointwise kernel loads the element that it writes. */
export function readsOwn({ shape, write }: LoopKernel, load: Load): boolean {
  return load.offset === write.offset && load.bounds.length === 0 &&
    shape.every((n, d) => n === 1 || load.strides[d] === write.strides[d]);
}

/** Where a loop kernel writes. */
export interface Write {
  readonly strides: readonly number[];
  readonly offset: number;
  readonly slot?: number;
  readonly stride?: number;
}

/** A strided array operand: element c lies at `offset + Σ strides[d] · c[d]`, in elements. */
export interface Operand {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
  readonly offset: number;
}

/** What follows a hand-written kernel's result, element by element, before it is stored. */
export interface Epilogue {
  /** Over the iteration space `outputs[0].shape`; {@linkcode Acc} is the kernel's own result. */
  readonly body: Expr;
  /** Extra inputs, which `body`'s loads number on from the call's own (`inputs.length`, …). */
  readonly inputs: readonly DType[];
}

/** A call of a hand-written kernel. Its outputs are contiguous. */
export interface CallKernel {
  readonly kind: "call";
  readonly label: string;
  readonly op: KernelCode;
  /** Structural settings, part of the plan's key: numbers, booleans, strings. */
  readonly attrs: Readonly<Record<string, number | boolean | string>>;
  readonly inputs: readonly Operand[];
  readonly outputs: readonly Operand[];
  /** Per-step values, after which come those of the epilogue. */
  readonly scalars: readonly Register[];
  readonly epilogue: Epilogue | null;
}

/**
 * `epilogue` as a kernel of its own: a loop in place over the result that lies in the call's output,
 * which is the loop's last input.
 */
export function epilogueLoop(call: CallKernel, epilogue: Epilogue): LoopKernel {
  const { label, outputs: [{ shape, dtype }], scalars } = call;
  const inputs = [...call.inputs.map((o) => o.dtype), ...epilogue.inputs, dtype];
  const input = inputs.length - 1;
  const strides = rowMajor(shape);
  const [body] = rewrite(
    [epilogue.body],
    (e) =>
      e.kind === "acc" ? { kind: "load", type: e.type, input, strides, offset: 0, bounds: [] } : e,
  );
  return {
    kind: "loop",
    label,
    shape,
    reduced: 0,
    combine: null,
    body,
    inputs,
    scalars,
    output: dtype,
    write: { strides, offset: 0 },
    inPlace: input,
  };
}

/** A kernel, whose inputs, outputs, scalars and workspace a {@linkcode Step} binds. */
export type Kernel = LoopKernel | CallKernel;

/** The code of a hand-written kernel, one generator for each backend. */
export interface KernelCode {
  readonly name: string;
  /** Whether the kernel can read input `index` laid out like this; else it is given a contiguous copy. */
  accepts(index: number, operand: Operand): boolean;
  /** Whether the kernel can apply an epilogue (both generators then must). */
  readonly epilogue: boolean;
  readonly wgsl: (call: CallKernel, target: WgslTarget) => WgslProgram;
  readonly wasm: (call: CallKernel, target: WasmTarget) => WasmProgram;
}

/** Memory on a device. Backends extend it. */
export interface Buffer {
  readonly bytes: number;
}

/** A kernel with its memory. */
export interface Step {
  readonly kernel: Kernel;
  /** The kernel's inputs, then the epilogue's. The same buffer may stand more than once. */
  readonly inputs: readonly Buffer[];
  readonly outputs: readonly Buffer[];
  /** Present where {@linkcode Backend.workspace} asked for it. */
  readonly workspace: Buffer | null;
  /** Where this step's scalars begin in the program's scalars, in 32-bit words; a multiple of 64. */
  readonly scalars: number;
}

/** A run's data. */
export interface Run {
  /** Host data to copy to the device before the first step. */
  readonly uploads: readonly { readonly buffer: Buffer; readonly data: ArrayBufferView }[];
  /** All steps' scalars; i32 and f32 as their bits, bool as 0 or 1. */
  readonly scalars: Uint32Array<ArrayBuffer>;
  /** What is to be read back after the last step. */
  readonly results: readonly { readonly buffer: Buffer; readonly bytes: number }[];
}

/** What a run left: its results, which may be fetched later, or never. */
export interface Results {
  /**
   * The bytes of each result. The results keep what they held at the end of their run, however late
   * they are fetched; several calls share one transfer. On webgpu the first call waits for the device.
   */
  fetch(): Promise<ArrayBuffer[]>;
}

/** Steps bound to memory and ready to replay: running it makes no buffer, pipeline or bind group. */
export interface Program {
  /** Enqueues the steps. Resolves once they are enqueued (webgpu) or done (cpu). */
  run(run: Run): Promise<Results>;
  /** Gives up what the program holds beside its buffers. */
  dispose(): void;
}

/** What a backend has made since it started, for tests of replay and for reports. */
export interface BackendCounters {
  /** Buffers allocated, staging included. */
  buffers: number;
  /** Kernels compiled: pipelines, or WASM functions. */
  pipelines: number;
  /** Bind groups, or programs' argument tables. */
  bindings: number;
  /** Bytes allocated now. */
  bytes: number;
  /** The most bytes allocated at a time. */
  peakBytes: number;
}

/** A device that runs plans. */
export interface Backend {
  readonly name: "cpu" | "webgpu";
  /** What it runs on, in words. */
  readonly description: string;
  /** How many buffers a kernel may bind: inputs and outputs, one left aside for scalars and workspace each. */
  readonly maxBindings: number;
  /** The largest buffer that a kernel can bind, in bytes. */
  readonly maxBytes: number;
  readonly counters: BackendCounters;
  /** Whether a run resolves before its steps are done: what is enqueued next keeps the device busy. */
  readonly enqueues: boolean;
  /** Throws what, needed, and limit when there is no room. Contents are not defined. */
  allocate(bytes: number): Buffer;
  free(buffer: Buffer): void;
  /** Ordered with runs: later runs see it, earlier ones do not. */
  write(buffer: Buffer, data: ArrayBufferView, byteOffset?: number): void;
  /** As `write`, of bytes that `make` puts, at once, into the memory that it is handed. */
  fill(
    buffer: Buffer,
    byteOffset: number,
    bytes: number,
    make: (into: Uint8Array<ArrayBufferLike>) => void,
  ): void;
  /** Ordered with runs: sees all of those before. */
  read(buffer: Buffer, bytes: number, byteOffset?: number): Promise<ArrayBuffer>;
  /** Bytes of workspace the kernel needs while it runs; 0 for none. Compiles it if need be. */
  workspace(kernel: Kernel): number;
  /** Compiles the kernels not seen before and binds the steps. */
  program(steps: readonly Step[], scalarWords: number): Program;
  /** Gives the device back, once it is idle. */
  close(): void | Promise<void>;
}

/** A string equal for kernels that compile to the same code. */
export function kernelKey(kernel: Kernel): string {
  const seen = new Map<Expr, number>();
  const out: string[] = [];
  const visit = (e: Expr): number => {
    const known = seen.get(e);
    if (known !== undefined) return known;
    let text: string;
    switch (e.kind) {
      case "const":
        text = `c${e.type}${Object.is(e.value, -0) ? "-0" : e.value}`;
        break;
      case "index":
        text = `i${e.dim}`;
        break;
      case "scalar":
        text = `s${e.type}${e.slot}`;
        break;
      case "acc":
        text = "acc";
        break;
      case "load":
        text = `l${e.type}${e.input}[${e.strides}]${e.offset}${
          e.bounds.map((b) => `{${b.dim},${b.low},${b.high}}`)
        }`;
        break;
      case "fetch":
        text = `f${e.type}${e.input}[${e.strides}]${e.offset}${
          e.at.map((a) => `{${visit(a.index)},${a.stride},${a.size}}`)
        }`;
        break;
      case "apply":
        text = `${e.op}:${e.type}(${e.args.map(visit)})`;
    }
    const id = seen.size;
    seen.set(e, id);
    out.push(text);
    return id;
  };
  if (kernel.kind === "loop") {
    const outputs = outputsOf(kernel).map((o) => `${visit(o.body)} ip ${o.inPlace ?? ""}`);
    const w = kernel.write;
    return `loop [${kernel.shape}]r${kernel.reduced}${
      kernel.combine ?? ""
    } in ${kernel.inputs} sc ${kernel.scalars} out ${kernel.output}[${w.strides}]${w.offset},${
      w.slot ?? ""
    },${w.stride ?? ""} of ${outputs}: ${out.join(";")}`;
  }
  const operand = (o: Operand) => `${o.dtype}[${o.shape}|${o.strides}|${o.offset}]`;
  if (kernel.epilogue) visit(kernel.epilogue.body);
  return `call ${kernel.op.name} ${JSON.stringify(kernel.attrs)} in ${
    kernel.inputs.map(operand)
  } out ${kernel.outputs.map(operand)} sc ${kernel.scalars} ep ${kernel.epilogue?.inputs}: ${
    out.join(";")
  }`;
}

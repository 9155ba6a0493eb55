// What the webgpu tests share: one backend, kernels and calls in short.
import { assert } from "@std/assert";
import { bytesOf, type DType, hostArray, registerOf } from "../../core/dtype.ts";
import type { Bound, Expr } from "../../core/expr.ts";
import type { Backend, Buffer, CallKernel, LoopKernel, Operand, Step } from "../../core/kernel.ts";
import { decodeAll, encode, interpret } from "./interpret.ts";
import { createWebGpuBackend, webGpuAdapterProblem } from "../../core/webgpu/backend.ts";
import type { WgslProgram, WgslTarget } from "../../core/wgsl.ts";

const found = await createWebGpuBackend({ software: true });
// No device is left open for the end of the process, when the driver is taken down.
Deno.test.afterAll(() => found?.close());

/** The backend under test. */
export function backend(): Promise<Backend> {
  return Promise.resolve(found!);
}

/** A test that needs an adapter, and says why where there is none. */
export function gpuTest(name: string, body: () => Promise<void>): void {
  Deno.test({
    name: found ? name : `${name} (skipped: ${webGpuAdapterProblem()})`,
    ignore: !found,
    sanitizeOps: false,
    sanitizeResources: false,
    fn: body,
  });
}

/** A load in short. */
export function load(
  dtype: DType,
  input: number,
  strides: number[],
  offset = 0,
  bounds: Bound[] = [],
): Expr {
  return { kind: "load", type: registerOf(dtype), input, strides, offset, bounds };
}

/** A loop kernel with a contiguous output. */
export function loop(
  shape: number[],
  reduced: number,
  body: Expr,
  inputs: DType[],
  output: DType = "f32",
  combine: LoopKernel["combine"] = null,
): LoopKernel {
  const outer = shape.slice(0, shape.length - reduced);
  const strides = outer.map((_, d) => outer.slice(d + 1).reduce((a, b) => a * b, 1));
  return {
    kind: "loop",
    label: combine ?? "map",
    shape,
    reduced,
    combine,
    body,
    inputs,
    scalars: [],
    output,
    write: { strides, offset: 0 },
    inPlace: null,
  };
}

/** Runs steps once and reads what is asked for. */
export async function runSteps(
  steps: Step[],
  scalars: Uint32Array<ArrayBuffer>,
  results: { buffer: Step["inputs"][number]; bytes: number }[],
): Promise<ArrayBuffer[]> {
  const program = found!.program(steps, scalars.length);
  const ran = await program.run({ uploads: [], scalars, results });
  const data = await ran.fetch();
  program.dispose();
  return data;
}

/** Runs `kernel` on the device and compares with `expected`, by default the interpreter's. */
export async function check(
  kernel: LoopKernel,
  inputs: readonly (readonly number[])[],
  outputLength: number,
  scalars: readonly number[],
  tolerance: number,
  expected?: readonly number[],
): Promise<void> {
  const device = found!;
  const hosts = inputs.map((values, i) => encode(kernel.inputs[i], values));
  const bytes = Math.ceil(outputLength * bytesOf(kernel.output) / 4) * 4;
  const buffers = hosts.map((host) => {
    const buffer = device.allocate(Math.max(host.byteLength, 16));
    device.write(buffer, host);
    return buffer;
  });
  const out = kernel.inPlace === null
    ? device.allocate(Math.max(bytes, 16))
    : buffers[kernel.inPlace];
  if (kernel.inPlace === null) device.write(out, new Uint8Array(bytes));
  const words = new Uint32Array(kernel.scalars.length);
  kernel.scalars.forEach((type, i) => {
    if (type === "f32") new Float32Array(words.buffer)[i] = scalars[i];
    else words[i] = scalars[i];
  });
  const size = device.workspace(kernel);
  const workspace = size ? device.allocate(size) : null;
  const [data] = await runSteps(
    [{ kernel, inputs: buffers, outputs: [out], workspace, scalars: 0 }],
    words,
    [{ buffer: out, bytes }],
  );
  for (const b of new Set([...buffers, out, ...(workspace ? [workspace] : [])])) device.free(b);
  const got = decodeAll(kernel.output, hostArray(kernel.output, data, outputLength));
  const oracle = kernel.inPlace === null
    ? encode(kernel.output, new Array(outputLength).fill(0))
    : hosts[kernel.inPlace].slice();
  if (!expected) interpret(kernel, hosts, words, oracle);
  close(
    got,
    expected ?? decodeAll(kernel.output, oracle),
    kernel.output === "f16" ? 1e-3 : kernel.output === "bf16" ? 8e-3 : tolerance,
  );
}

/** Asserts |got - want| ≤ tolerance · max(1, |want|). */
export function close(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tolerance: number,
  what = "",
): void {
  for (let i = 0; i < want.length; i++) {
    const same = Object.is(got[i], want[i]) ||
      Math.abs(got[i] - want[i]) <= tolerance * Math.max(1, Math.abs(want[i]));
    assert(same, `${what} element ${i}: got ${got[i]}, want ${want[i]}`);
  }
}

/** A strided operand with its data. */
export interface LabOperand extends Operand {
  readonly values: readonly number[];
}

/** Random values in [-1, 1) as a strided operand: `order` lists its dimensions, slowest first. */
export function operand(
  shape: number[],
  order: number[] = shape.map((_, d) => d),
  options: { broadcast?: number[]; pad?: number; offset?: number; dtype?: DType } = {},
): LabOperand {
  const strides = new Array<number>(shape.length).fill(0);
  let size = 1;
  [...order].reverse().forEach((d, i) => {
    if (options.broadcast?.includes(d)) return;
    strides[d] = size;
    size *= shape[d];
    if (i === 0) size += options.pad ?? 0;
  });
  const offset = options.offset ?? 0;
  const dtype = options.dtype ?? "f32";
  let state = size + 12345;
  const values = Array.from({ length: size + offset }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const u = state / 2 ** 32;
    return dtype === "bool" ? (u < 0.6 ? 1 : 0) : Math.fround(u * 2 - 1);
  });
  return { dtype, shape, strides, offset, values: decodeAll(dtype, encode(dtype, values)) };
}

/** Element `at` of an operand. */
export function element(o: LabOperand, ...at: number[]): number {
  return o.values[at.reduce((s, c, d) => s + c * o.strides[d], o.offset)];
}

/** The device at hand, and others as generators see them. */
export type Kind = "as here" | "without subgroups" | "as on a GPU";

const KINDS: Record<Kind, Partial<WgslTarget>> = {
  "as here": {},
  "without subgroups": { subgroup: null },
  "as on a GPU": { software: false },
};

/** All of them. */
export const kinds: Kind[] = Object.keys(KINDS) as Kind[];

/** A call to be run. */
export interface LabCall {
  readonly wgsl: (call: CallKernel, target: WgslTarget) => WgslProgram;
  readonly inputs: readonly LabOperand[];
  readonly outputs: readonly { readonly shape: number[]; readonly dtype?: DType }[];
  readonly attrs?: CallKernel["attrs"];
  readonly scalars?: readonly number[];
  readonly epilogue?: { readonly body: Expr; readonly inputs: readonly LabOperand[] };
  /** What to generate for; default: the device at hand. */
  readonly as?: Kind;
}

/** Runs a call (with i32 scalars) and gives its outputs. */
export async function runCall(lab: LabCall): Promise<number[][]> {
  const device = found!;
  const { as = "as here" } = lab;
  const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
  const outputs = lab.outputs.map(({ shape, dtype = "f32" }): Operand => ({
    dtype,
    shape,
    strides: shape.map((_, d) => count(shape.slice(d + 1))),
    offset: 0,
  }));
  const kernel: CallKernel = {
    kind: "call",
    label: lab.wgsl.name,
    op: {
      name: `${lab.wgsl.name} ${as}`,
      accepts: () => true,
      epilogue: true,
      wgsl: (call, target) => lab.wgsl(call, { ...target, ...KINDS[as] }),
      wasm: () => {
        throw new Error("not on webgpu");
      },
    },
    attrs: lab.attrs ?? {},
    inputs: lab.inputs.map(({ values: _, ...rest }) => rest),
    outputs,
    scalars: (lab.scalars ?? []).map(() => "i32"),
    epilogue: lab.epilogue
      ? { body: lab.epilogue.body, inputs: lab.epilogue.inputs.map((o) => o.dtype) }
      : null,
  };
  const upload = (o: LabOperand): Buffer => {
    const host = encode(o.dtype, o.values);
    const buffer = device.allocate(host.byteLength);
    device.write(buffer, host);
    return buffer;
  };
  const inputs = [...lab.inputs, ...lab.epilogue?.inputs ?? []].map(upload);
  const made = outputs.map((o) => {
    const bytes = Math.ceil(count(o.shape) * bytesOf(o.dtype) / 4) * 4;
    const buffer = device.allocate(bytes);
    device.write(buffer, new Uint8Array(buffer.bytes).fill(0x55));
    return { buffer, bytes };
  });
  const size = device.workspace(kernel);
  const workspace = size ? device.allocate(size) : null;
  const data = await runSteps(
    [{ kernel, inputs, outputs: made.map((o) => o.buffer), workspace, scalars: 0 }],
    Uint32Array.from(lab.scalars ?? []),
    made,
  );
  for (const b of [...inputs, ...made.map((o) => o.buffer), ...(workspace ? [workspace] : [])]) {
    device.free(b);
  }
  return data.map((d, i) =>
    decodeAll(outputs[i].dtype, hostArray(outputs[i].dtype, d, count(outputs[i].shape)))
  );
}

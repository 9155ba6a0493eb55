// What the tests of the cpu backend share: kernels in short, and running one.
import type { HostArray, Register } from "../../core/dtype.ts";
import type { Bound, Expr } from "../../core/expr.ts";
import { type Backend, type LoopKernel, outputsOf, type Step } from "../../core/kernel.ts";

/** A small deterministic generator of numbers in [0, 1). */
export function random(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(s ^ (s >>> 15), s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Runs one kernel on host arrays; its output, which held `output` before. */
export async function runLoop(
  backend: Backend,
  kernel: LoopKernel,
  inputs: readonly HostArray[],
  scalars: readonly number[],
  output: HostArray,
): Promise<HostArray> {
  return (await runOutputs(backend, kernel, inputs, scalars, [output]))[0];
}

/** As {@linkcode runLoop}, with all outputs. */
export async function runOutputs(
  backend: Backend,
  kernel: LoopKernel,
  inputs: readonly HostArray[],
  scalars: readonly number[],
  outputs: readonly HostArray[],
): Promise<HostArray[]> {
  const buffers = inputs.map((data) => {
    const buffer = backend.allocate(Math.max(16, data.byteLength));
    backend.write(buffer, data);
    return buffer;
  });
  const outs = outputsOf(kernel).map(({ inPlace }, k) => {
    if (inPlace !== null) return buffers[inPlace];
    const out = backend.allocate(Math.max(16, outputs[k].byteLength));
    backend.write(out, outputs[k]);
    return out;
  });
  const bytes = backend.workspace(kernel);
  const workspace = bytes > 0 ? backend.allocate(bytes) : null;
  const step: Step = { kernel, inputs: buffers, outputs: outs, workspace, scalars: 0 };
  const program = backend.program([step], 64);
  const words = new Uint32Array(64);
  words.set(scalars);
  const run = await program.run({
    uploads: [],
    scalars: words,
    results: outs.map((buffer, k) => ({ buffer, bytes: outputs[k].byteLength })),
  });
  const data = await run.fetch();
  program.dispose();
  for (const b of new Set([...buffers, ...outs])) backend.free(b);
  if (workspace) backend.free(workspace);
  const Kind = outputs[0].constructor as new (b: ArrayBuffer) => HostArray;
  return data.map((bytes) => new Kind(bytes));
}

/** A load of input `input`. */
export function load(
  input: number,
  strides: number[],
  type: Register = "f32",
  bounds: Bound[] = [],
): Expr {
  return { kind: "load", type, input, strides, offset: 0, bounds };
}

/** A loop kernel with a contiguous output; what is not told is the plainest. */
export function loop(part: Partial<LoopKernel> & { shape: number[]; body: Expr }): LoopKernel {
  const rank = part.shape.length - (part.reduced ?? 0);
  const strides = part.shape.slice(0, rank).map((_, d) =>
    part.shape.slice(d + 1, rank).reduce((a, b) => a * b, 1)
  );
  return {
    kind: "loop",
    label: "loop",
    reduced: 0,
    combine: null,
    inputs: ["f32"],
    scalars: [],
    output: "f32",
    write: { strides, offset: 0 },
    inPlace: null,
    ...part,
  };
}

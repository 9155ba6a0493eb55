/**
 * What the machine can do at most: multiplications and additions in registers, and bytes to and from
 * memory, each measured by a kernel that does nothing else, on the backend's own threads.
 *
 * @module
 */

import type { Backend, CallKernel, KernelCode, Operand, Results } from "../core/kernel.ts";
import { openBackend } from "../core/registry.ts";
import { add, f32x4, mul, v128, type WasmStage } from "../core/wasm.ts";
import { dispatchOf, WgslModule, type WgslProgram, type WgslTarget } from "../core/wgsl.ts";

/** The limits of a device. */
export interface Limits {
  /** Floating-point operations a second. */
  readonly flops: number;
  /** Bytes a second: read only, and read and written by a copy. */
  readonly read: number;
  readonly copied: number;
}

/** Accumulators: enough to keep two multiply-adds of four or five cycles each under way. */
const CHAINS = 10;
const ROUNDS = 4000;
/** Shares of the work on the cpu, and invocations of the arithmetic on WebGPU. */
const UNITS = 64;
const INVOCATIONS = 4096;

/** Measures the limits, the best of some runs. */
export async function measureLimits(
  device: "cpu" | "webgpu",
  threads: number,
): Promise<Limits> {
  const backend = await openBackend(device, threads);
  // Half of what a WebGPU binding holds by default.
  const bytes = device === "cpu" ? 256 << 20 : 64 << 20;
  const run = (kernel: CallKernel): Promise<number> => seconds(backend, kernel);
  const units = device === "cpu" ? UNITS : INVOCATIONS;
  const limits = {
    // Four lanes, a multiplication and an addition each.
    flops: 8 * CHAINS * ROUNDS * units / await run(kernelOf(arithmetic(), 1 << 16, 1 << 16)),
    read: bytes / await run(kernelOf(reading(bytes), bytes, 4096)),
    copied: 2 * bytes / await run(kernelOf(copying(bytes), bytes, bytes)),
  };
  await backend.close();
  return limits;
}

/** The shortest of some runs; on WebGPU, where reading a result waits, of some runs at a time. */
async function seconds(backend: Backend, kernel: CallKernel): Promise<number> {
  const [input, output] = [kernel.inputs[0], kernel.outputs[0]].map((o) =>
    backend.allocate(4 * o.shape[0])
  );
  // Memory that was never written to is one page of zeros, which stays in the cache.
  for (const buffer of [input, output]) backend.write(buffer, new Uint8Array(buffer.bytes).fill(1));
  const program = backend.program(
    [{ kernel, inputs: [input], outputs: [output], workspace: null, scalars: 0 }],
    64,
  );
  const once = (bytes: number): Promise<Results> =>
    program.run({
      uploads: [],
      scalars: new Uint32Array(64),
      results: bytes > 0 ? [{ buffer: output, bytes }] : [],
    });
  const cpu = backend.name === "cpu";
  const times = cpu ? 1 : 8;
  let best = Infinity;
  // On the cpu a run is shorter than what a thread may take to wake up: many, for all to take part.
  for (let i = 0; i < (cpu ? 60 : 6); i++) {
    const start = performance.now();
    for (let j = 1; j < times; j++) await once(0);
    await (await once(4)).fetch();
    best = Math.min(best, (performance.now() - start) / times);
  }
  program.dispose();
  backend.free(input);
  backend.free(output);
  return best / 1000;
}

function kernelOf(op: KernelCode, inputBytes: number, outputBytes: number): CallKernel {
  const operand = (bytes: number): Operand => ({
    dtype: "f32",
    shape: [bytes / 4],
    strides: [1],
    offset: 0,
  });
  return {
    kind: "call",
    label: op.name,
    op,
    attrs: {},
    inputs: [operand(inputBytes)],
    outputs: [operand(outputBytes)],
    scalars: [],
    epilogue: null,
  };
}

function code(
  name: string,
  build: WasmStage["build"],
  wgsl: (target: WgslTarget) => WgslProgram,
): KernelCode {
  return {
    name,
    accepts: () => true,
    epilogue: false,
    wasm: () => ({
      stages: [{ units: UNITS, cost: 1e9, build }],
      workspace: 0,
      scratch: 0,
    }),
    wgsl: (_call, target) => wgsl(target),
  };
}

/** Multiply-adds on accumulators that never leave their registers. */
function arithmetic(): KernelCode {
  return code("limit: arithmetic", (f) => {
    const factor = f.let(v128.load32_splat(f.input(0)));
    const sums = Array.from({ length: CHAINS }, () => f.let(v128.zero()));
    f.for(0, ROUNDS, 1, () => {
      for (const sum of sums) f.set(sum, f.vectors.madd(factor, factor, sum));
    });
    const total = sums.reduce((a, b) => f.let(f32x4.add(a, b)));
    f.store(add(f.output(0), mul(f.unit, 16)), total);
  }, (target) => {
    const module = new WgslModule(target);
    const a = module.bind({ kind: "input", index: 0 }, "vec4<f32>");
    const out = module.bind({ kind: "output", index: 0 }, "vec4<f32>", true);
    const names = Array.from({ length: CHAINS }, (_, i) => `s${i}`);
    const lanes = 8;
    const groups = dispatchOf(INVOCATIONS / lanes, target);
    return {
      passes: [module.pass(
        `@compute @workgroup_size(${lanes})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let f = ${a}[id.x];
  ${names.map((s) => `var ${s} = vec4<f32>();`).join("\n  ")}
  for (var i = 0u; i < ${ROUNDS}u; i++) {
    ${names.map((s) => `${s} = fma(f, f, ${s});`).join("\n    ")}
  }
  ${out}[id.x] = ${names.join(" + ")};
}`,
        groups,
        8 * CHAINS * ROUNDS * INVOCATIONS,
      )],
      workspace: 0,
    };
  });
}

/** Reads from end to end. */
function reading(bytes: number): KernelCode {
  const share = bytes / UNITS;
  return code("limit: reading", (f) => {
    const at = f.let(add(f.input(0), mul(f.unit, share)));
    const sums = Array.from({ length: 8 }, () => f.let(v128.zero()));
    f.for(0, share / 128, 1, () => {
      sums.forEach((sum, i) => f.set(sum, f32x4.add(sum, v128.load(at, 16 * i))));
      f.set(at, add(at, 128));
    });
    const total = sums.reduce((a, b) => f.let(f32x4.add(a, b)));
    f.store(add(f.output(0), mul(f.unit, 16)), total);
  }, (target) => streamWgsl(target, bytes, false));
}

/** Copies from end to end. */
function copying(bytes: number): KernelCode {
  const share = bytes / UNITS;
  return code("limit: copying", (f) => {
    const from = f.let(add(f.input(0), mul(f.unit, share)));
    const to = f.let(add(f.output(0), mul(f.unit, share)));
    f.for(0, share / 128, 1, () => {
      for (let i = 0; i < 8; i++) f.store(to, v128.load(from, 16 * i), 16 * i);
      f.set(from, add(from, 128));
      f.set(to, add(to, 128));
    });
  }, (target) => streamWgsl(target, bytes, true));
}

/** Each invocation reads vectors that lie next to those of its neighbours. */
function streamWgsl(target: WgslTarget, bytes: number, copy: boolean): WgslProgram {
  const module = new WgslModule(target);
  const a = module.bind({ kind: "input", index: 0 }, "vec4<f32>");
  const out = module.bind({ kind: "output", index: 0 }, "vec4<f32>", true);
  const lanes = target.software ? 8 : 256;
  const threads = copy ? bytes / 16 / 16 : bytes / 16 / 64;
  const each = bytes / 16 / threads;
  const groups = dispatchOf(threads / lanes, target);
  const body = copy
    ? `for (var i = 0u; i < ${each}u; i++) { ${out}[base + i * ${lanes}u] = ${a}[base + i * ${lanes}u]; }`
    : `var sum = vec4<f32>();
  for (var i = 0u; i < ${each}u; i++) { sum += ${a}[base + i * ${lanes}u]; }
  if (sum.x == 1234.5) { ${out}[0] = sum; }`;
  return {
    passes: [module.pass(
      `@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let group = id.x + id.y * ${groups[0]}u;
  if (group >= ${threads / lanes}u) { return; }
  let base = group * ${lanes * each}u + lane;
  ${body}
}`,
      groups,
      bytes,
    )],
    workspace: 0,
  };
}

if (import.meta.main) {
  const device = (Deno.args[0] ?? "cpu") as "cpu" | "webgpu";
  const { flops, read, copied } = await measureLimits(device, navigator.hardwareConcurrency);
  console.log(
    `${(flops / 1e9).toFixed(1)} GFLOP/s; ${(read / 1e9).toFixed(1)} GB/s read, ` +
      `${(copied / 1e9).toFixed(1)} GB/s copied`,
  );
  Deno.exit(0);
}

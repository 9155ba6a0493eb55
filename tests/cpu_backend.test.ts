import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { createCpuBackend } from "../core/cpu/backend.ts";
import { type DType, DTYPES, type HostArray, type Register, registerOf } from "../core/dtype.ts";
import {
  apply,
  type Binary,
  bitcast,
  type Bound,
  cast,
  constant,
  type Expr,
  select,
  type Unary,
} from "../core/expr.ts";
import type { Backend, LoopKernel, Step } from "../core/kernel.ts";
import { decode, decodeAll, encode, interpret } from "./interpret.ts";

const THREADS = [1, 2, 3];

/** A small deterministic generator of numbers in [0, 1). */
function random(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (s + 0x6d2b79f5) >>> 0;
    let t = Math.imul(s ^ (s >>> 15), s | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Runs one kernel on host arrays; its output, which held `output` before. */
async function runLoop(
  backend: Backend,
  kernel: LoopKernel,
  inputs: readonly HostArray[],
  scalars: readonly number[],
  output: HostArray,
): Promise<HostArray> {
  const buffers = inputs.map((data) => {
    const buffer = backend.allocate(Math.max(16, data.byteLength));
    backend.write(buffer, data);
    return buffer;
  });
  const out = kernel.inPlace !== null
    ? buffers[kernel.inPlace]
    : backend.allocate(Math.max(16, output.byteLength));
  if (kernel.inPlace === null) backend.write(out, output);
  const bytes = backend.workspace(kernel);
  const workspace = bytes > 0 ? backend.allocate(bytes) : null;
  const step: Step = { kernel, inputs: buffers, outputs: [out], workspace, scalars: 0 };
  const program = backend.program([step], 64);
  const words = new Uint32Array(64);
  words.set(scalars);
  const run = await program.run({
    uploads: [],
    scalars: words,
    results: [{ buffer: out, bytes: output.byteLength }],
  });
  const [data] = await run.fetch();
  program.dispose();
  for (const b of new Set([...buffers, out])) backend.free(b);
  if (workspace) backend.free(workspace);
  const Kind = output.constructor as new (b: ArrayBuffer) => HostArray;
  return new Kind(data);
}

interface Case {
  kernel: LoopKernel;
  inputs: HostArray[];
  scalars: number[];
  output: HostArray;
}

const FLOAT_UNARY: Unary[] = [
  "neg",
  "abs",
  "floor",
  "ceil",
  "exp",
  "sin",
  "cos",
  "tanh",
  "erf",
];
const FLOAT_BINARY: Binary[] = ["add", "sub", "mul", "min", "max"];
const INT_BINARY: Binary[] = [
  "add",
  "sub",
  "mul",
  "div",
  "rem",
  "min",
  "max",
  "and",
  "or",
  "xor",
  "shl",
  "shr",
];
const COMPARE: Binary[] = ["eq", "ne", "lt", "le", "gt", "ge"];

/** A random kernel with data to run it on. */
function randomCase(seed: number): Case {
  const next = random(seed);
  const below = (n: number) => Math.floor(next() * n);
  const pick = <T>(list: readonly T[]): T => list[below(list.length)];
  const rank = below(5);
  const shape = Array.from({ length: rank }, () => pick([1, 2, 3, 4, 5, 7, 8, 16, 19, 37]));
  while (shape.reduce((a, b) => a * b, 1) > 20000) shape[below(rank)] = 2;
  const reduced = below(3) === 0 ? 0 : below(rank + 1);
  const dtypes: DType[] = [];
  const inputs: HostArray[] = [];
  const scalars: number[] = [];
  const scalarTypes: Register[] = [];

  /** A strided view of a fresh input: strides, offset and what elements it takes. */
  const view = (
    dtype: DType,
    more: number,
  ): { input: number; strides: number[]; offset: number } => {
    const order = shape.map((_, d) => d);
    if (next() < 0.4) order.sort(() => next() - 0.5);
    const strides = shape.map(() => 0);
    let step = 1;
    for (const d of order.reverse()) {
      if (next() < 0.2) continue;
      strides[d] = step;
      step *= shape[d];
      if (next() < 0.1) step += 2;
    }
    let offset = below(3);
    shape.forEach((n, d) => {
      if (next() < 0.1) {
        offset += (n - 1) * strides[d];
        strides[d] = -strides[d];
      }
    });
    const count = 3 + more + shape.reduce((a, n, d) => a + (n - 1) * Math.abs(strides[d]), 0);
    const float = registerOf(dtype) === "f32";
    inputs.push(encode(
      dtype,
      Array.from(
        { length: count },
        () =>
          float
            ? (next() - 0.5) * 4
            : dtype === "bool"
            ? below(2)
            : dtype === "i32"
            ? below(200) - 100
            : below(200),
      ),
    ));
    dtypes.push(dtype);
    return { input: inputs.length - 1, strides, offset };
  };
  const made: Expr[] = [];
  const leaf = (type: Register): Expr => {
    const roll = next();
    if (roll < 0.1) {
      return constant(
        type,
        type === "f32" ? next() * 3 - 1 : type === "bool" ? below(2) : below(9),
      );
    }
    if (roll < 0.2) {
      const value = type === "f32" ? next() * 2 : type === "bool" ? below(2) : below(50);
      const [word] = type === "f32" ? new Uint32Array(Float32Array.of(value).buffer) : [value];
      scalars.push(word);
      scalarTypes.push(type);
      return { kind: "scalar", type, slot: scalars.length - 1 };
    }
    if (roll < 0.3 && rank > 0 && type !== "bool") {
      return cast({ kind: "index", type: "i32", dim: below(rank) }, type);
    }
    const dtype = pick(DTYPES.filter((d) => registerOf(d) === type));
    if (roll < 0.4) {
      const size = 1 + below(6);
      const stride = 1 + below(3);
      const v = view(dtype, size * stride);
      const index = expression("i32", 1);
      // Some indices are out of range, on purpose.
      const at = [{ index: apply("rem", index, constant("i32", size + 2)), stride, size }];
      return { kind: "fetch", type, ...v, at };
    }
    const v = view(dtype, 0);
    const bounds: Bound[] = [];
    if (rank > 0 && next() < 0.3) {
      const dim = below(rank);
      const low = below(shape[dim]);
      const high = low + below(shape[dim] - low + 1);
      // As a pad: what is out of bounds is not in the buffer.
      const shift = v.strides[dim] > 0 && next() < 0.7 ? low * v.strides[dim] : 0;
      bounds.push({ dim, low, high });
      return { kind: "load", type, ...v, offset: v.offset - shift, bounds };
    }
    return { kind: "load", type, ...v, bounds };
  };
  const expression = (type: Register, depth: number): Expr => {
    const known = made.filter((e) => e.type === type);
    if (known.length > 0 && next() < 0.15) return pick(known);
    if (depth === 0) return leaf(type);
    const e = node(type, depth - 1);
    made.push(e);
    return e;
  };
  const node = (type: Register, depth: number): Expr => {
    const roll = next();
    if (roll < 0.12) {
      return select(expression("bool", depth), expression(type, depth), expression(type, depth));
    }
    if (roll < 0.25 && type !== "bool") {
      const from = pick<Register>(["f32", "i32", "u32", "bool"]);
      return cast(expression(from, depth), type);
    }
    switch (type) {
      case "f32":
        if (roll < 0.5) return apply(pick(FLOAT_UNARY) as "neg", expression("f32", depth));
        return apply(pick(FLOAT_BINARY), expression("f32", depth), expression("f32", depth));
      case "bool": {
        if (roll < 0.3) return apply("not", expression("bool", depth));
        if (roll < 0.5) {
          return apply(
            pick<Binary>(["and", "or", "xor"]),
            expression("bool", depth),
            expression("bool", depth),
          );
        }
        const from = pick<Register>(["i32", "u32"]);
        return apply(pick(COMPARE), expression(from, depth), expression(from, depth));
      }
      default: {
        const op = pick(INT_BINARY);
        if (roll < 0.3) return bitcast(expression(type === "i32" ? "u32" : "i32", depth), type);
        let right = expression(type, depth);
        if (op === "shl" || op === "shr") right = apply("and", right, constant(type, 7));
        return apply(op, expression(type, depth), right);
      }
    }
  };

  const output = pick(DTYPES);
  const type = registerOf(output);
  const combine = reduced === 0
    ? null
    : type === "bool"
    ? pick(["max", "min"] as const)
    : type === "f32"
    ? pick(["sum", "max", "min"] as const)
    : pick(["sum", "max", "min", "prod"] as const);
  const body = expression(type, 1 + below(3));
  const outer = shape.slice(0, rank - reduced);
  const order = outer.map((_, d) => d);
  if (next() < 0.3) order.sort(() => next() - 0.5);
  const strides = outer.map(() => 0);
  let step = next() < 0.1 ? 2 : 1;
  for (const d of order.reverse()) {
    strides[d] = step;
    step *= outer[d];
  }
  let count = outer.reduce((a, n, d) => a + (n - 1) * strides[d], 1);
  let slot: number | undefined;
  if (next() < 0.2) {
    slot = scalars.length;
    scalars.push(below(4));
    scalarTypes.push("i32");
    count += 9;
  }
  const offset = below(2);
  count += offset;
  const kernel: LoopKernel = {
    kind: "loop",
    label: `case ${seed}`,
    shape,
    reduced,
    combine,
    body,
    inputs: dtypes,
    scalars: scalarTypes,
    output,
    write: slot === undefined ? { strides, offset } : { strides, offset, slot, stride: 3 },
    inPlace: null,
  };
  const before = encode(output, Array.from({ length: count }, () => 1));
  return { kernel, inputs, scalars, output: before };
}

function compare(kernel: LoopKernel, got: HostArray, want: HostArray): void {
  const tolerance = { f32: 2e-5, f16: 2e-3, bf16: 2e-2, i32: 0, u32: 0, bool: 0 }[kernel.output];
  for (let i = 0; i < want.length; i++) {
    const a = decode(kernel.output, got, i);
    const b = decode(kernel.output, want, i);
    const near = Object.is(a, b) || a === b ||
      Math.abs(a - b) <= tolerance * (1 + Math.abs(b)) * (kernel.reduced ? 10 : 1);
    if (!near) {
      throw new Error(
        `element ${i}: ${a}, not ${b}\n${JSON.stringify(kernel, null, 1).slice(0, 4000)}`,
      );
    }
  }
}

/** Whether float arithmetic decides something exact: a floor, a cast to an integer. */
function touchy(e: Expr): boolean {
  if (e.kind === "fetch") return e.at.some((a) => touchy(a.index));
  if (e.kind !== "apply") return false;
  if (e.args.some(touchy)) return true;
  const float = (x: Expr): boolean => x.kind === "apply" && x.type === "f32";
  return (e.op === "floor" || e.op === "ceil" || e.op === "cast" || e.op === "bitcast") &&
    float(e.args[0]);
}

/** Whether a sum's size may hide the smallness of its parts, or overflow a 16-bit output. */
function wild(data: HostArray, dtype: DType): boolean {
  return decodeAll(dtype, data).some((x) => !Number.isFinite(x) || Math.abs(x) > 1e6) &&
    registerOf(dtype) === "f32";
}

Deno.test("cpu: random loop kernels mean what the interpreter says", async (t) => {
  for (const threads of [1, 2]) {
    await t.step(`${threads} threads`, async () => {
      const backend = await createCpuBackend({ threads });
      let ran = 0;
      for (let seed = 1; seed <= 500; seed++) {
        const { kernel, inputs, scalars, output } = randomCase(seed);
        if (touchy(kernel.body)) continue;
        const want = output.slice() as HostArray;
        interpret(kernel, inputs, Uint32Array.from(scalars), want);
        if (wild(want, kernel.output)) continue;
        const got = await runLoop(backend, kernel, inputs, scalars, output);
        compare(kernel, got, want);
        ran++;
      }
      assert(ran > 300, `only ${ran} ran`);
      backend.close();
    });
  }
});

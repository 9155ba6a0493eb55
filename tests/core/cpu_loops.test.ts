// Generated loop kernels on the cpu: against the interpreter, for every number of threads, at their edges.
import { assert, assertEquals } from "@std/assert";
import { createCpuBackend } from "../../core/cpu/backend.ts";
import { type DType, DTYPES, type HostArray, type Register, registerOf } from "../../core/dtype.ts";
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
} from "../../core/expr.ts";
import { bodiesOf, type LoopKernel, outputsOf } from "../../core/kernel.ts";
import { load, loop, random, runLoop, runOutputs } from "./cpu_lab.ts";
import { decode, decodeAll, encode, interpret } from "./interpret.ts";

const THREADS = [1, 2, 3];

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
  if (reduced === 0 && next() < 0.5) {
    const more = Array.from({ length: 1 + below(3) }, () => expression(type, 1 + below(2)));
    return {
      kernel: { ...kernel, more: more.map((body) => ({ body, inPlace: null })) },
      inputs,
      scalars,
      output: before,
    };
  }
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
      const ran = { one: 0, several: 0 };
      for (let seed = 1; seed <= 500; seed++) {
        const { kernel, inputs, scalars, output } = randomCase(seed);
        if (bodiesOf(kernel).some(touchy)) continue;
        const want = outputsOf(kernel).map(() => output.slice() as HostArray);
        interpret(kernel, inputs, Uint32Array.from(scalars), ...want);
        if (want.some((data) => wild(data, kernel.output))) continue;
        const before = want.map(() => output);
        const got = await runOutputs(backend, kernel, inputs, scalars, before);
        got.forEach((data, k) => compare(kernel, data, want[k]));
        ran[got.length > 1 ? "several" : "one"]++;
      }
      assert(ran.one > 250 && ran.several > 50, `only ${JSON.stringify(ran)} ran`);
      backend.close();
    });
  }
});

Deno.test("cpu: large kernels, the same to the bit for every number of threads", async () => {
  const next = random(7);
  const sum = { reduced: 1, combine: "sum" as const };
  const a = load(0, [1]);
  const kernels: LoopKernel[] = [
    loop({ shape: [100003], body: apply("exp", a) }),
    loop({ shape: [100003], body: a, more: [{ body: apply("mul", a, a), inPlace: null }] }),
    loop({ shape: [300001], body: a, ...sum }),
    loop({ shape: [300001], body: apply("mul", a, a), ...sum }),
    loop({ shape: [300001], body: a, reduced: 1, combine: "max" }),
    loop({ shape: [7, 40001], body: load(0, [40001, 1]), ...sum }),
    loop({ shape: [7, 40001], body: load(0, [1, 7]), ...sum }),
    loop({ shape: [6, 5000, 9], body: load(0, [9, 54, 1]), reduced: 2, combine: "sum" }),
    loop({ shape: [100, 3000], body: load(0, [1, 100]), ...sum }),
    loop({ shape: [3, 2, 40000], body: load(0, [80000, 40000, 1]), reduced: 2, combine: "sum" }),
    loop({ shape: [500, 600], body: load(0, [1, 500]) }),
    loop({
      shape: [300, 1000],
      body: load(0, [999, 1], "f32", [{ dim: 1, low: 1, high: 998 }]),
    }),
    // A causal mask: an index against an index.
    loop({
      shape: [20, 100, 130],
      body: select(
        apply("ge", { kind: "index", type: "i32", dim: 1 }, { kind: "index", type: "i32", dim: 2 }),
        load(0, [13000, 130, 1]),
        constant("f32", -1),
      ),
    }),
    loop({
      shape: [70000],
      body: cast(apply("lt", a, constant("f32", 0.5)), "i32"),
      output: "i32",
      ...sum,
    }),
  ];
  const data = Float32Array.from({ length: 310000 }, () => next());
  const firsts: HostArray[][] = [];
  for (const threads of THREADS) {
    const backend = await createCpuBackend({ threads });
    for (const [i, kernel] of kernels.entries()) {
      const rank = kernel.shape.length - kernel.reduced;
      const count = kernel.shape.slice(0, rank).reduce((x, y) => x * y, 1);
      const empty = outputsOf(kernel).map(() =>
        encode(kernel.output, new Array<number>(count).fill(0))
      );
      const got = await runOutputs(backend, kernel, [data], [], empty);
      if (threads === 1) {
        interpret(kernel, [data], new Uint32Array(0), ...empty);
        empty.forEach((want, k) => {
          const worst = decodeAll(kernel.output, want).reduce(
            (w, x, j) => Math.max(w, Math.abs(got[k][j] - x) / Math.max(1, Math.abs(x))),
            0,
          );
          assert(worst < 1e-6, `kernel ${i}: off by ${worst}`);
        });
        firsts.push(got);
      } else assertEquals(got, firsts[i], `kernel ${i}, ${threads} threads`);
    }
    backend.close();
  }
});

Deno.test("cpu: a sum of ten million numbers keeps six digits", async () => {
  const n = 10_000_000;
  const backend = await createCpuBackend();
  const data = new Float32Array(n).fill(0.1);
  const kernel = loop({ shape: [n], body: load(0, [1]), reduced: 1, combine: "sum" });
  const [sum] = await runLoop(backend, kernel, [data], [], new Float32Array(1));
  assert(Math.abs(sum / (n * Math.fround(0.1)) - 1) < 1e-6, `${sum}`);
  backend.close();
});

Deno.test("cpu: reductions of nothing, and outputs of nothing", async () => {
  const backend = await createCpuBackend({ threads: 1 });
  const data = new Float32Array(4);
  for (const [combine, want] of [["sum", 0], ["prod", 1], ["max", -Infinity]] as const) {
    const kernel = loop({ shape: [3, 0], body: load(0, [0, 1]), reduced: 1, combine });
    const got = await runLoop(backend, kernel, [data], [], new Float32Array(3));
    assertEquals([...got], [want, want, want]);
  }
  const none = loop({ shape: [0, 3], body: load(0, [3, 1]) });
  assertEquals((await runLoop(backend, none, [data], [], new Float32Array(0))).length, 0);
  backend.close();
});

Deno.test("cpu: 16-bit floats widen and round as they should", async () => {
  const backend = await createCpuBackend({ threads: 1 });
  const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
  const same = (a: number, b: number) => Object.is(a, b) || (Number.isNaN(a) && Number.isNaN(b));
  const words = Uint32Array.from({ length: 400000 }, (_, i) => Math.imul(i, 2654435761));
  // The neighbourhood of every f16, where ties are.
  for (let i = 0; i < 65536; i++) {
    const [bits] = new Uint32Array(Float32Array.of(decode("f16", all, i)).buffer);
    words[3 * i] = bits + 0x1000;
    words[3 * i + 1] = bits + 0x0fff;
    words[3 * i + 2] = bits + 0x1001;
  }
  const floats = new Float32Array(words.buffer);
  for (const dtype of ["f16", "bf16"] as const) {
    const wide = loop({ shape: [65536], body: load(0, [1]), inputs: [dtype] });
    const widened = await runLoop(backend, wide, [all], [], new Float32Array(65536));
    widened.forEach((x, i) => assert(same(x, decode(dtype, all, i)), `${dtype} ${i}: ${x}`));
    const narrow = loop({ shape: [floats.length], body: load(0, [1]), output: dtype });
    const empty = new Uint16Array(floats.length);
    const rounded = await runLoop(backend, narrow, [floats], [], empty);
    const want = encode(dtype, [...floats]);
    rounded.forEach((_, i) => {
      const [a, b] = [decode(dtype, rounded, i), decode(dtype, want, i)];
      if (!same(a, b)) throw new Error(`${floats[i]} as ${dtype}: ${a}, not ${b}`);
    });
  }
  backend.close();
});

Deno.test("cpu: elementary functions at their edges", async () => {
  const backend = await createCpuBackend({ threads: 1 });
  const edges = [0, -0, 1, -1, Infinity, -Infinity, NaN, 1e-40, 100, -100, 88.7, 0.5, 1e-4, 9.5];
  const run = async (op: Unary | "pow", xs: number[], ys: number[]) => {
    const n = xs.length;
    const args = op === "pow" ? [load(0, [1]), load(1, [1])] : [load(0, [1])];
    const kernel = loop({
      shape: [n],
      body: apply(op as "exp", ...args),
      inputs: ["f32", "f32"],
    });
    const data = [Float32Array.from(xs), Float32Array.from(ys)];
    const got = await runLoop(backend, kernel, data, [], new Float32Array(n));
    const want = new Float32Array(n);
    interpret(kernel, data, new Uint32Array(0), want);
    got.forEach((x, i) => {
      const close = Object.is(x, want[i]) || x === want[i] ||
        Math.abs(x - want[i]) <= 1e-6 * Math.abs(want[i]) + 2e-38;
      if (!close) throw new Error(`${op}(${xs[i]}, ${ys[i]}) is ${x}, not ${want[i]}`);
    });
  };
  for (const op of ["exp", "log", "tanh", "erf", "sqrt", "rsqrt", "sin", "cos"] as const) {
    const spread = Array.from({ length: 2000 }, (_, i) => (i - 1000) / 12.3);
    await run(op, [...edges, ...spread], [...edges, ...spread]);
  }
  const bases = edges.flatMap((x) => edges.map(() => x));
  const exponents = edges.flatMap(() => edges.map((y) => y === 100 ? 3 : y === -100 ? -2 : y));
  // C and IEEE 754 say that these are 1; JavaScript says NaN.
  const agreed = bases.map((x, i) => !(Math.abs(x) === 1 && !Number.isFinite(exponents[i])));
  await run("pow", bases.filter((_, i) => agreed[i]), exponents.filter((_, i) => agreed[i]));
  backend.close();
});

// The webgpu backend on its own, driven through the Backend interface: generated loop kernels,
// against a plain interpreter. The hand-written kernels have a file each.
import { assert, assertEquals } from "@std/assert";
import type { DType } from "../../core/dtype.ts";
import { apply, bitcast, cast, constant, type Expr, select } from "../../core/expr.ts";
import type { CallKernel, LoopKernel } from "../../core/kernel.ts";
import { pointwiseWgsl, type WgslProgram, type WgslTarget } from "../../core/wgsl.ts";
import { backend, check, gpuTest, load, loop, operand, runCall, runSteps } from "./webgpu_lab.ts";

/** Runs `kernel` and its oracle on random inputs of the given lengths. */
async function compare(
  kernel: LoopKernel,
  lengths: number[],
  outputLength: number,
  options: { scalars?: number[]; tolerance?: number; integers?: boolean } = {},
): Promise<void> {
  const inputs = kernel.inputs.map((dtype, i) => random(dtype, lengths[i], i, options.integers));
  await check(kernel, inputs, outputLength, options.scalars ?? [], options.tolerance ?? 2e-6);
}

function random(dtype: DType, length: number, seed: number, integers = false): number[] {
  let state = seed * 7919 + 17;
  return Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const u = state / 2 ** 32;
    if (dtype === "bool") return u < 0.5 ? 1 : 0;
    if (dtype === "i32") return Math.floor((u - 0.5) * 20);
    if (dtype === "u32") return Math.floor(u * 20);
    return integers ? Math.floor(u * 8) : (u - 0.5) * 4;
  });
}

gpuTest("pointwise: fused arithmetic over broadcast, transposed and bounded loads", async () => {
  const a = load("f32", 0, [12, 4, 1]);
  const b = load("f32", 1, [0, 1, 3]);
  const c = load("f32", 2, [1, 0, 1], -2, [{ dim: 0, low: 1, high: 4 }, {
    dim: 2,
    low: 1,
    high: 3,
  }]);
  const body = apply("add", apply("mul", a, b), apply("exp", apply("neg", apply("abs", c))));
  await compare(loop([5, 3, 4], 0, body, ["f32", "f32", "f32"]), [60, 12, 7], 60);
});

/** Twice the input, as for a software device. */
function doubled(call: CallKernel, target: WgslTarget): WgslProgram {
  const { shape } = call.outputs[0];
  const body = apply("add", load("f32", 0, [shape[1], 1]), load("f32", 0, [shape[1], 1]));
  const kernel = loop([...shape], 0, body, ["f32"]);
  return pointwiseWgsl(kernel, [], { ...target, software: true });
}

gpuTest(
  "pointwise: on a software device kernels that differ in length share a pipeline",
  async () => {
    const { counters } = await backend();
    const made = async (rows: number, columns: number): Promise<number> => {
      const before = counters.pipelines;
      const x = operand([rows, columns]);
      const [got] = await runCall({
        wgsl: doubled,
        inputs: [x],
        outputs: [{ shape: [rows, columns] }],
      });
      assertEquals(got, x.values.map((v) => 2 * v));
      return counters.pipelines - before;
    };
    await made(30, 50);
    assertEquals(await made(7, 61), 0);
    // In vectors of four.
    assertEquals(await made(128, 128), 1);
    assertEquals(await made(68, 300), 0);
  },
);

gpuTest("pointwise: in vectors of four", async () => {
  const shape = [30, 9, 64]; // 17,280 elements
  const count = 30 * 9 * 64;
  const dtypes = ["f32", "f16", "bf16", "i32", "u32", "bool"] as const;
  const all = dtypes.map((dtype, i) => load(dtype, i, [576, 64, 1]));
  const [f, h, b, i, u, t] = all;
  const bounded = load("f32", 0, [576, 64, 1], -576, [{ dim: 0, low: 1, high: 30 }]);
  const row = load("f32", 6, [0, 0, 1]), column = load("f32", 6, [9, 1, 0]);
  const transposed = load("f32", 7, [1, 30, 270]);
  const column2: Expr = { kind: "index", type: "i32", dim: 2 };
  const floats = [h, b, cast(i, "f32"), cast(u, "f32"), bounded, row, column, transposed];
  const body = select(t, floats.reduce((x, y) => apply("add", x, y), f), cast(column2, "f32"));
  const inputs: DType[] = [...dtypes, "f32", "f32"];
  const lengths = inputs.map(() => count);
  for (const output of ["f32", "f16", "bf16"] as const) {
    await compare(loop(shape, 0, body, inputs, output), lengths, count);
  }
  await compare(loop(shape, 0, apply("gt", f, row), inputs, "bool"), lengths, count);
  for (const dtype of ["f32", "bf16"] as const) {
    const x = load(dtype, 0, [1]);
    const kernel = { ...loop([count], 0, apply("mul", x, x), [dtype], dtype), inPlace: 0 };
    await compare(kernel, [count], count);
  }
  // In place over bits of another type, and through a scalar into a larger buffer.
  const bits = apply("xor", load("i32", 0, [1]), constant("i32", 5));
  await compare({ ...loop([count], 0, bits, ["i32"], "i32"), inPlace: 0 }, [count], count);
  const moved = {
    ...loop([270, 64], 0, load("f32", 0, [64, 1]), ["f32"]),
    scalars: ["i32"] as const,
    write: { strides: [128, 1], offset: 64, slot: 0, stride: 128 },
  };
  await compare(moved, [count], 128 * 275, { scalars: [3] });
});

gpuTest("pointwise: scalars and coordinates", async () => {
  const x = load("f32", 0, [1]);
  const row: Expr = { kind: "index", type: "i32", dim: 0 };
  const s = (type: "f32" | "i32" | "bool", slot: number): Expr => ({ kind: "scalar", type, slot });
  const body = select(
    apply("and", apply("lt", row, s("i32", 1)), s("bool", 2)),
    apply("mul", x, s("f32", 0)),
    cast(row, "f32"),
  );
  const kernel = { ...loop([300], 0, body, ["f32"]), scalars: ["f32", "i32", "bool"] as const };
  await compare(kernel, [300], 300, { scalars: [1.5, 137, 1] });
});

gpuTest("pointwise: integers, shifts and casts", async () => {
  const i = load("i32", 0, [1]);
  const u = load("u32", 1, [1]);
  const nonzero = apply("or", u, constant("u32", 1));
  const body = apply(
    "xor",
    cast(apply("add", apply("div", u, nonzero), apply("shl", u, constant("u32", 35))), "i32"),
    apply(
      "add",
      apply("rem", i, constant("i32", 7)),
      apply("add", apply("shr", i, constant("u32", 1)), apply("not", apply("neg", i))),
    ),
  );
  await compare(loop([1000], 0, body, ["i32", "u32"], "i32"), [1000, 1000], 1000);
  const words = bitcast(apply("mul", bitcast(i, "u32"), constant("u32", 2654435761)), "i32");
  await compare(loop([64], 0, words, ["i32"], "i32"), [64], 64);
});

gpuTest("pointwise: a fetch outside gives zero", async () => {
  const index = load("i32", 0, [1, 0]);
  const body: Expr = {
    kind: "fetch",
    type: "f32",
    input: 1,
    strides: [0, 1],
    offset: 0,
    at: [{ index, stride: 4, size: 6 }],
  };
  await compare(loop([50, 4], 0, body, ["i32", "f32"]), [50, 24], 200);
});

for (const dtype of ["f16", "bf16"] as const) {
  gpuTest(`pointwise: ${dtype} in pairs, at odd places, through a scalar, in place`, async () => {
    const body = apply("mul", load(dtype, 0, [1]), constant("f32", 1.5));
    await compare(loop([10], 0, body, [dtype], dtype), [10], 10);
    await compare(loop([301], 0, body, [dtype], dtype), [301], 301);
    // Every third element from the fifth on: neighbours in a word keep their halves.
    const spread = {
      ...loop([40], 0, body, [dtype], dtype),
      write: { strides: [3], offset: 5 },
    };
    await compare(spread, [40], 130);
    const slot = {
      ...loop([2, 7], 0, apply("neg", load(dtype, 0, [7, 1])), [dtype], dtype),
      scalars: ["i32"] as const,
      write: { strides: [35, 1], offset: 0, slot: 0, stride: 7 },
    };
    await compare(slot, [14], 70, { scalars: [3] });
    for (const n of [64, 65]) {
      await compare({ ...loop([n], 0, body, [dtype], dtype), inPlace: 0 }, [n], n);
    }
    await compare(
      loop([33, 20], 1, load(dtype, 0, [20, 1]), [dtype], dtype, "max"),
      [660],
      33,
    );
  });
}

gpuTest("pointwise: a write through a scalar, a bool, an empty one, a scalar one", async () => {
  const kernel = {
    ...loop([2, 3, 4], 0, load("f32", 0, [12, 4, 1]), ["f32"]),
    scalars: ["i32"] as const,
    write: { strides: [40, 4, 1], offset: 4, slot: 0, stride: 4 },
  };
  await compare(kernel, [24], 80, { scalars: [5] });
  const test = apply("gt", load("f32", 0, [1]), constant("f32", 0));
  await compare(loop([77], 0, test, ["f32"], "bool"), [77], 77);
  await compare(loop([0], 0, test, ["f32"], "bool"), [1], 1);
  await compare(loop([], 0, load("f32", 0, [], 3), ["f32"]), [5], 1);
});

gpuTest("pointwise: more workgroups than one dimension of a dispatch has", async () => {
  const n = 65535 * 256 + 1000;
  const row: Expr = { kind: "index", type: "i32", dim: 0 };
  const device = await backend();
  const out = device.allocate(n * 4);
  const kernel = loop([n], 0, row, [], "i32");
  const [bytes] = await runSteps(
    [{
      kernel,
      inputs: [],
      outputs: [out],
      workspace: null,
      scalars: 0,
    }],
    new Uint32Array(0),
    [{ buffer: out, bytes: n * 4 }],
  );
  device.free(out);
  const values = new Int32Array(bytes);
  for (const i of [0, 1, 65535 * 256 - 1, 65535 * 256, n - 1]) assertEquals(values[i], i);
});

const SUMS: [string, number[], number, number[]][] = [
  ["short rows", [300, 5], 1, [5, 1]],
  ["rows", [100, 333], 1, [333, 1]],
  ["rows in fours", [100, 332], 1, [332, 1]],
  ["few rows", [3, 777], 1, [777, 1]],
  ["columns", [400, 100], 1, [1, 400]],
  ["columns of a tall matrix", [10, 5000], 1, [1, 10]],
  ["columns in fours", [12, 5000], 1, [1, 12]],
  ["all", [70000], 1, [1]],
  ["inner and outer", [7, 30, 11], 2, [11, 77, 1]],
  ["one term", [9, 1], 1, [1, 1]],
];
for (const [name, shape, reduced, strides] of SUMS) {
  gpuTest(`reduction: ${name}`, async () => {
    const count = shape.reduce((x, y) => x * y, 1);
    const outputs = shape.slice(0, shape.length - reduced).reduce((x, y) => x * y, 1);
    const x = load("f32", 0, strides);
    for (const combine of ["sum", "max", "min"] as const) {
      await compare(loop(shape, reduced, x, ["f32"], "f32", combine), [count], outputs, {
        tolerance: 1e-5,
      });
    }
    const whole = load("i32", 0, strides);
    await compare(loop(shape, reduced, whole, ["i32"], "i32", "sum"), [count], outputs);
    await compare(loop(shape, reduced, whole, ["i32"], "i32", "max"), [count], outputs);
    const b = load("bool", 0, strides);
    await compare(loop(shape, reduced, b, ["bool"], "bool", "min"), [count], outputs);
  });
}

gpuTest("reduction: products, empty reductions", async () => {
  const x = load("f32", 0, [6, 1]);
  await compare(loop([5, 6], 1, x, ["f32"], "f32", "prod"), [30], 5, { tolerance: 1e-5 });
  await compare(loop([5, 0], 1, x, ["f32"], "f32", "sum"), [1], 5);
  await compare(loop([5, 0], 1, x, ["f32"], "f32", "max"), [1], 5);
});

gpuTest("reduction: a long sum loses little", async () => {
  const n = 1_000_000;
  const values = Array.from({ length: n }, (_, i) => Math.fround(1 + (i % 7) * 0.1));
  const exact = values.reduce((a, b) => a + b, 0);
  const kernel = loop([n], 1, load("f32", 0, [1]), ["f32"], "f32", "sum");
  await check(kernel, [values], 1, [], 2e-7, [exact]);
});

gpuTest("results keep what they held, however late they are fetched", async () => {
  const device = await backend();
  const [x, y] = [device.allocate(400), device.allocate(20000)];
  const kernel = loop([100], 0, apply("add", load("f32", 0, [1]), constant("f32", 1)), ["f32"]);
  const program = device.program([
    { kernel: { ...kernel, inPlace: 0 }, inputs: [x], outputs: [x], workspace: null, scalars: 0 },
  ], 0);
  device.write(x, new Float32Array(100));
  const results = [];
  for (let i = 0; i < 30; i++) {
    results.push(
      await program.run({
        uploads: [],
        scalars: new Uint32Array(0),
        results: i % 2 ? [{ buffer: x, bytes: 4 }, { buffer: y, bytes: 20000 }] : [
          { buffer: x, bytes: 400 },
        ],
      }),
    );
  }
  const before = { ...device.counters };
  const fetched = await Promise.all(results.map((r) => r.fetch()));
  fetched.forEach((f, i) => {
    assertEquals(new Float32Array(f[0])[0], i + 1);
    if (i % 2) assertEquals(f[1].byteLength, 20000);
  });
  assertEquals(new Float32Array((await results[3].fetch())[0])[0], 4);
  assertEquals(new Float32Array(await device.read(x, 8, 4))[1], 30);
  // Steady state: no buffer, pipeline or bind group more.
  for (let i = 0; i < 20; i++) {
    const r = await program.run({
      uploads: [{ buffer: x, data: new Float32Array(100).fill(i) }],
      scalars: new Uint32Array(0),
      results: [{ buffer: x, bytes: 4 }],
    });
    if (i % 3 === 0) assertEquals(new Float32Array((await r.fetch())[0])[0], i + 1);
  }
  assertEquals(device.counters.pipelines, before.pipelines);
  assertEquals(device.counters.bindings, before.bindings);
  assert(device.counters.buffers - before.buffers <= 1);
  program.dispose();
  device.free(x);
  device.free(y);
});

gpuTest("errors say what was asked for", async () => {
  const device = await backend();
  const thrown = (make: () => unknown): string => {
    try {
      make();
    } catch (error) {
      return (error as Error).message;
    }
    return "";
  };
  assert(thrown(() => device.allocate(2 ** 45)).includes("needs one buffer"));
  const x = device.allocate(16);
  assert(thrown(() => device.write(x, new Float32Array(5))).includes("write of 20 bytes"));
  device.free(x);
  assert(thrown(() => device.write(x, new Float32Array(1))).includes("freed"));
  const out = device.allocate(64);
  const broken = loop([4], 0, { kind: "scalar", type: "f32", slot: 0 }, []);
  const bind = () =>
    device.program(
      [{ kernel: broken, inputs: [], outputs: [out], workspace: null, scalars: 0 }],
      0,
    );
  assert(thrown(bind) !== "");
  // A kernel that does not compile: the run says which.
  const op = {
    name: "bad",
    accepts: () => true,
    epilogue: false,
    wasm: () => {
      throw new Error("not here");
    },
    wgsl: () => ({
      passes: [{
        code: "@compute @workgroup_size(1) fn main() { nonsense(); }",
        bindings: [],
        parameters: new Uint32Array(0),
        workgroups: [1, 1, 1] as const,
        cost: 1,
      }],
      workspace: 0,
    }),
  };
  const program = device.program([{
    kernel: {
      kind: "call",
      label: "the bad op",
      op,
      attrs: {},
      inputs: [],
      outputs: [],
      scalars: [],
      epilogue: null,
    },
    inputs: [],
    outputs: [],
    workspace: null,
    scalars: 0,
  }], 0);
  let message = "";
  try {
    await program.run({ uploads: [], scalars: new Uint32Array(0), results: [] });
  } catch (error) {
    message = (error as Error).message;
  }
  assert(message.includes("the bad op"), message);
});

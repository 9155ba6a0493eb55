import { assert } from "@std/assert";
import { createCpuBackend } from "../../core/cpu/backend.ts";
import type { DType, HostArray } from "../../core/dtype.ts";
import { apply } from "../../core/expr.ts";
import type { Backend, CallKernel, Epilogue, KernelCode, Operand } from "../../core/kernel.ts";
import { attentionBackwardWasm, attentionWasm } from "../../core/ops/attention/wasm.ts";
import { matmulWasm } from "../../core/ops/matmul/wasm.ts";
import { scatterRowsWasm } from "../../core/ops/scatter_rows/wasm.ts";
import { decodeAll, encode } from "./interpret.ts";

function code(name: string, wasm: KernelCode["wasm"]): KernelCode {
  const wgsl = () => {
    throw new Error("not here");
  };
  return { name, accepts: () => true, epilogue: true, wgsl, wasm };
}

const MATMUL = code("matmul", matmulWasm);
const ATTENTION = code("attention", attentionWasm);
const BACKWARD = code("attentionBackward", attentionBackwardWasm);
const SCATTER = code("scatterRows", scatterRowsWasm);

function random(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0;
    return s / 2 ** 32;
  };
}

const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

/** An operand whose dimensions lie in memory in the order `order`, outermost first. */
function operand(
  shape: readonly number[],
  order: readonly number[] = shape.map((_, d) => d),
  dtype: DType = "f32",
  offset = 0,
): Operand {
  const strides = shape.map(() => 0);
  let step = 1;
  for (const d of [...order].reverse()) {
    strides[d] = step;
    step *= shape[d];
  }
  return { dtype, shape, strides, offset };
}

const extent = (o: Operand) =>
  o.shape.reduce((n, s, d) => n + (s - 1) * Math.abs(o.strides[d]), 1 + o.offset);

/** Elements of a flat operand by coordinates. */
function reader(o: Operand, data: readonly number[]): (...at: number[]) => number {
  return (...at) => data[at.reduce((n, c, d) => n + c * o.strides[d], o.offset)];
}

/** The elements of a flat operand in order. */
function gather(o: Operand, data: readonly number[]): number[] {
  const out: number[] = [];
  const walk = (d: number, i: number) => {
    if (d === o.shape.length) return void out.push(data[i]);
    for (let c = 0; c < o.shape[d]; c++) walk(d + 1, i + c * o.strides[d]);
  };
  walk(0, o.offset);
  return out;
}

/** Runs a call; its outputs, each with four elements after its end that must stay as they were. */
async function run(
  backend: Backend,
  kernel: CallKernel,
  inputs: readonly HostArray[],
  scalars: readonly number[] = [],
): Promise<Float32Array[]> {
  const buffers = inputs.map((data) => {
    const buffer = backend.allocate(data.byteLength);
    backend.write(buffer, data);
    return buffer;
  });
  const outs = kernel.outputs.map((o) => {
    const buffer = backend.allocate(4 * size(o.shape) + 16);
    backend.write(buffer, new Float32Array(size(o.shape) + 4).fill(77));
    return buffer;
  });
  const bytes = backend.workspace(kernel);
  const workspace = bytes > 0 ? backend.allocate(bytes) : null;
  if (workspace) backend.write(workspace, new Float32Array(bytes / 4).fill(NaN));
  const step = { kernel, inputs: buffers, outputs: outs, workspace, scalars: 0 };
  const program = backend.program([step], 64);
  const words = new Uint32Array(64);
  words.set(scalars);
  const results = outs.map((buffer, i) => ({
    buffer,
    bytes: 4 * size(kernel.outputs[i].shape) + 16,
  }));
  const done = await program.run({ uploads: [], scalars: words, results });
  const data = (await done.fetch()).map((b) => new Float32Array(b));
  program.dispose();
  for (const b of [...buffers, ...outs, ...(workspace ? [workspace] : [])]) backend.free(b);
  return data.map((d, i) => {
    const n = size(kernel.outputs[i].shape);
    assert(d.subarray(n).every((x) => x === 77), `${kernel.label}: wrote beyond output ${i}`);
    return d.subarray(0, n);
  });
}

function near(what: string, got: Float32Array, want: readonly number[], tolerance = 1e-4): void {
  want.forEach((w, i) => {
    if (!(Math.abs(got[i] - w) <= tolerance * (1 + Math.abs(w)))) {
      throw new Error(`${what}: element ${i} is ${got[i]}, not ${w}`);
    }
  });
}

function call(
  op: KernelCode,
  inputs: readonly Operand[],
  outputs: readonly (readonly number[])[],
  attrs: CallKernel["attrs"] = {},
  epilogue: Epilogue | null = null,
): CallKernel {
  return {
    kind: "call",
    label: op.name,
    op,
    attrs,
    inputs,
    outputs: outputs.map((shape) => operand(shape)),
    scalars: ["i32"],
    epilogue,
  };
}

Deno.test("cpu: matmul of every size, layout and dtype", async () => {
  const next = random(1);
  const sizes = [
    [1, 1, 1],
    [1, 16, 5],
    [1, 17, 33],
    [3, 7, 2],
    [5, 9, 64],
    [6, 8, 8],
    [7, 5, 9],
    [8, 64, 70],
    [13, 11, 1],
    [1, 4, 1],
    [50, 33, 41],
    [49, 400, 30],
    [64, 8, 64],
    [100, 17, 8],
    [9, 0, 4],
    [14, 800, 19],
  ];
  for (const threads of [1, 2]) {
    const backend = await createCpuBackend({ threads });
    for (const batch of threads === 1 ? [[2, 3]] : [[], [3], [2, 3]]) {
      for (const [m, k, n] of sizes) {
        for (let layout = 0; layout < 8; layout++) {
          const plain = batch.map((_, d) => d);
          const r = batch.length;
          const order = (flip: number) =>
            layout & flip ? [...plain, r + 1, r] : [...plain, r, r + 1];
          const types: DType[] = layout === 3 ? ["bf16", "f16"] : ["f32", "f32"];
          const a = operand([...batch, m, k], order(1), types[0], layout);
          let b = operand([...batch, k, n], order(2), types[1]);
          if (layout & 4) b = { ...b, strides: b.strides.map((s, d) => d === 0 && r > 0 ? 0 : s) };
          const data = [a, b].map((o) =>
            encode(o.dtype, Array.from({ length: extent(o) }, () => next() - 0.5))
          );
          const kernel = call(MATMUL, [a, b], [[...batch, m, n]]);
          const [got] = await run(backend, kernel, data);
          const dense = [a, b].map((o, i) => gather(o, decodeAll(o.dtype, data[i])));
          const want: number[] = [];
          for (let q = 0; q < size(batch); q++) {
            for (let i = 0; i < m; i++) {
              for (let j = 0; j < n; j++) {
                let sum = 0;
                for (let d = 0; d < k; d++) {
                  sum += dense[0][(q * m + i) * k + d] * dense[1][(q * k + d) * n + j];
                }
                want.push(sum);
              }
            }
          }
          near(`${batch} ${m}x${k}x${n} layout ${layout}`, got, want);
        }
      }
    }
    backend.close();
  }
});

Deno.test("cpu: matmul too deep to be packed at once", async () => {
  const backend = await createCpuBackend({ threads: 2 });
  const next = random(8);
  const [batch, m, k, n] = [2, 9, 2500, 530];
  for (const order of [[0, 1, 2], [0, 2, 1]]) {
    const a = operand([batch, m, k], [0, 1, 2], "f32");
    const b = operand([batch, k, n], order, "f32");
    const data = [a, b].map((o) =>
      encode(o.dtype, Array.from({ length: extent(o) }, () => next() - 0.5))
    );
    const [got] = await run(backend, call(MATMUL, [a, b], [[batch, m, n]]), data);
    const dense = [a, b].map((o, i) => gather(o, decodeAll(o.dtype, data[i])));
    const places = Array.from({ length: 400 }, (_, i) => i * 7919 % (batch * m * n));
    const want = places.map((place) => {
      const [q, i, j] = [Math.floor(place / (m * n)), Math.floor(place / n) % m, place % n];
      let sum = 0;
      for (let d = 0; d < k; d++) {
        sum += dense[0][(q * m + i) * k + d] * dense[1][(q * k + d) * n + j];
      }
      return sum;
    });
    near(`order ${order}`, Float32Array.from(places, (place) => got[place]), want);
  }
  backend.close();
});

Deno.test("cpu: matmul with an epilogue", async () => {
  const backend = await createCpuBackend({ threads: 2 });
  const next = random(2);
  for (const [m, k, n] of [[1, 8, 20], [30, 40, 50], [100, 100, 300]]) {
    const [a, b, bias] = [operand([m, k]), operand([k, n]), operand([n])];
    const epilogue: Epilogue = {
      body: apply(
        "tanh",
        apply("add", { kind: "acc", type: "f32" }, {
          kind: "load",
          type: "f32",
          input: 2,
          strides: [0, 1],
          offset: 0,
          bounds: [],
        }),
      ),
      inputs: ["f32"],
    };
    const data = [a, b, bias].map((o) =>
      Float32Array.from({ length: extent(o) }, () => next() - 0.5)
    );
    const kernel = call(MATMUL, [a, b], [[m, n]], {}, epilogue);
    const [got] = await run(backend, kernel, data);
    const want: number[] = [];
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = data[2][j];
        for (let d = 0; d < k; d++) sum += data[0][i * k + d] * data[1][d * n + j];
        want.push(Math.tanh(sum));
      }
    }
    near(`${m}x${k}x${n}`, got, want);
  }
  backend.close();
});

interface Attention {
  B: number;
  H: number;
  G: number;
  Tq: number;
  Tk: number;
  D: number;
  keys: number;
  causal: boolean;
  window: number;
  mask: "none" | "full" | "column" | "odd";
  layout: number;
}

/** Attention and its gradient by the definition. */
function attention(c: Attention, q: Reader, k: Reader, v: Reader, mask: Reader, g: Reader) {
  const { B, H, G, Tq, Tk, D, keys } = c;
  const scale = 0.3;
  const out = new Array<number>(B * Tq * H * D).fill(0);
  const lse = new Array<number>(B * H * Tq).fill(0);
  const delta = new Array<number>(B * H * Tq).fill(0);
  const dq = new Array<number>(B * Tq * H * D).fill(0);
  const dk = new Array<number>(B * Tk * G * D).fill(0);
  const dv = new Array<number>(B * Tk * G * D).fill(0);
  for (let b = 0; b < B; b++) {
    for (let h = 0; h < H; h++) {
      const kv = Math.floor(h / (H / G));
      for (let i = 0; i < Tq; i++) {
        const at = keys - Tq + i;
        const scores = Array.from({ length: Tk }, (_, j) => {
          const seen = j < keys && (!(c.causal || c.window) || j <= at) &&
            (!c.window || j > at - c.window) && (c.mask === "none" || mask(b, h, i, j) !== 0);
          if (!seen) return -Infinity;
          let s = 0;
          for (let d = 0; d < D; d++) s += q(b, h, i, d) * k(b, kv, j, d);
          return s * scale;
        });
        const max = Math.max(...scores);
        if (max === -Infinity) continue;
        const sum = scores.reduce((n, s) => n + Math.exp(s - max), 0);
        const row = (b * H + h) * Tq + i;
        lse[row] = max + Math.log(sum);
        const p = scores.map((s) => Math.exp(s - lse[row]));
        for (let d = 0; d < D; d++) {
          const o = p.reduce((n, w, j) => w === 0 ? n : n + w * v(b, kv, j, d), 0);
          out[((b * Tq + i) * H + h) * D + d] = o;
          delta[row] += o * g(b, h, i, d);
        }
        p.forEach((w, j) => {
          if (w === 0) return;
          let dp = 0;
          for (let d = 0; d < D; d++) dp += g(b, h, i, d) * v(b, kv, j, d);
          const ds = w * (dp - delta[row]) * scale;
          for (let d = 0; d < D; d++) {
            dq[((b * Tq + i) * H + h) * D + d] += ds * k(b, kv, j, d);
            dk[((b * Tk + j) * G + kv) * D + d] += ds * q(b, h, i, d);
            dv[((b * Tk + j) * G + kv) * D + d] += w * g(b, h, i, d);
          }
        });
      }
    }
  }
  return { out, lse, delta, dq, dk, dv };
}

type Reader = (...at: number[]) => number;

Deno.test("cpu: attention and its gradient", async () => {
  const base: Attention = {
    B: 1,
    H: 2,
    G: 2,
    Tq: 5,
    Tk: 5,
    D: 8,
    keys: 5,
    causal: false,
    window: 0,
    mask: "none",
    layout: 0,
  };
  const cases: Partial<Attention>[] = [
    {},
    { causal: true },
    { Tq: 1, Tk: 33, keys: 20, causal: true, D: 12 },
    { Tq: 3, Tk: 33, keys: 33, D: 7, H: 4, G: 2 },
    { B: 2, H: 6, G: 2, Tq: 61, Tk: 61, keys: 61, D: 10, causal: true, layout: 1 },
    { B: 3, H: 6, G: 3, Tq: 50, Tk: 70, keys: 66, D: 16, causal: true, layout: 1 },
    { B: 3, H: 6, G: 3, Tq: 50, Tk: 70, keys: 66, D: 16, window: 9, causal: true },
    { Tq: 100, Tk: 100, keys: 100, window: 30, D: 5 },
    { B: 4, H: 2, Tq: 13, Tk: 19, keys: 17, mask: "full", D: 9 },
    { B: 4, H: 2, Tq: 13, Tk: 19, keys: 19, mask: "column", D: 4, causal: true },
    { Tq: 13, Tk: 21, keys: 21, mask: "odd", D: 4 },
    // More queries than keys: the first ones see nothing.
    { Tq: 9, Tk: 9, keys: 4, causal: true },
    { Tq: 9, Tk: 9, keys: 0 },
    { Tq: 130, Tk: 150, keys: 150, causal: true, D: 24 },
  ];
  const next = random(3);
  for (const threads of [1, 2]) {
    const backend = await createCpuBackend({ threads });
    for (const [number, some] of cases.entries()) {
      const c = { ...base, ...some };
      const { B, H, G, Tq, Tk, D } = c;
      // Layout 1 is that of a projection: [B, T, H, D].
      const make = (h: number, t: number) =>
        operand([B, h, t, D], c.layout === 1 ? [0, 2, 1, 3] : [0, 1, 2, 3], "f32", c.layout);
      const [q, k, v, g] = [make(H, Tq), make(G, Tk), make(G, Tk), make(H, Tq)];
      const mask: Operand = {
        dtype: "bool",
        shape: [B, H, Tq, Tk],
        strides: c.mask === "column"
          ? [Tq, 0, 1, 0]
          : c.mask === "odd"
          ? [0, 0, 1, Tq]
          : [Tq * Tk, 0, Tk, 1],
        offset: 0,
      };
      const fill = (o: Operand, f: () => number) =>
        encode(o.dtype, Array.from({ length: extent(o) }, f));
      const floats = (o: Operand) => fill(o, () => next() * 4 - 2);
      const data = [floats(q), floats(k), floats(v)];
      // What lies beyond the keys is not to be touched.
      for (const [o, values] of [[k, data[1]], [v, data[2]]] as const) {
        for (let b = 0; b < B; b++) {
          for (let h = 0; h < G; h++) {
            for (let t = c.keys; t < Tk; t++) {
              for (let d = 0; d < D; d++) {
                values[o.offset + b * o.strides[0] + h * o.strides[1] + t * o.strides[2] + d] = NaN;
              }
            }
          }
        }
      }
      const maskData = fill(mask, () => next() < 0.6 ? 1 : 0);
      const dout = floats(g);
      const masked = c.mask !== "none";
      const attrs = { causal: c.causal, window: c.window, scale: 0.3, masked };
      const masks = masked ? [mask] : [];
      const forward = call(ATTENTION, [q, k, v, ...masks], [[B, Tq, H, D], [B, H, Tq]], attrs);
      const inputs = [...data, ...(masked ? [maskData] : [])];
      const [out, lse] = await run(backend, forward, inputs, [c.keys]);
      const read = (o: Operand, values: HostArray) => reader(o, decodeAll(o.dtype, values));
      const want = attention(
        c,
        read(q, data[0]),
        read(k, data[1]),
        read(v, data[2]),
        read(mask, maskData),
        read(g, dout),
      );
      near(`case ${number} out`, out, want.out);
      near(`case ${number} lse`, lse, want.lse);
      const row = operand([B, H, Tq]);
      const backward = call(
        BACKWARD,
        [q, k, v, ...masks, g, row, row],
        [[B, Tq, H, D], [B, Tk, G, D], [B, Tk, G, D]],
        attrs,
      );
      const rows = [Float32Array.from(want.lse), Float32Array.from(want.delta)];
      const [dq, dk, dv] = await run(backend, backward, [...inputs, dout, ...rows], [c.keys]);
      near(`case ${number} dq`, dq, want.dq);
      near(`case ${number} dk`, dk, want.dk);
      near(`case ${number} dv`, dv, want.dv);
    }
    backend.close();
  }
});

Deno.test("cpu: scattered rows", async () => {
  const next = random(4);
  for (const threads of [1, 2]) {
    const backend = await createCpuBackend({ threads });
    for (const [n, d, vocabulary] of [[1, 1, 1], [40, 6, 9], [300, 70, 50], [0, 4, 3]]) {
      const index = Int32Array.from({ length: n }, () => Math.floor(next() * (vocabulary + 4)) - 2);
      const source = Float32Array.from({ length: n * d }, () => next());
      const kernel = call(
        SCATTER,
        [operand([n], [0], "i32"), operand([n, d])],
        [[vocabulary, d]],
      );
      const [got] = await run(backend, kernel, [index, source]);
      const want = new Array<number>(vocabulary * d).fill(0);
      index.forEach((v, i) => {
        if (v < 0 || v >= vocabulary) return;
        for (let j = 0; j < d; j++) want[v * d + j] += source[i * d + j];
      });
      near(`${n} rows`, got, want);
    }
    backend.close();
  }
});

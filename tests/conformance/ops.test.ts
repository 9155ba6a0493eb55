/**
 * Every op of core/ops, from its own file: kernels against their references, gradients against finite
 * differences, on every backend, on contiguous inputs and on views, and each dtype.
 */

import { assert } from "@std/assert";
import {
  type Device,
  type DType,
  grad,
  noGrad,
  type Tensor,
  tensor,
  useDevice,
  Variable,
} from "@graft/ml";
import { hostArray } from "../../core/dtype.ts";
import type { Op, PointwiseOp, Sample, SampleInput } from "../../core/op.ts";
import { sizeOf } from "../../core/shape.ts";
import { forEachDevice } from "../devices.ts";

/** Every op that a file in core/ops exports. */
async function table(): Promise<Op[]> {
  const ops = new Map<number, Op>();
  const root = new URL("../../core/ops/", import.meta.url);
  const files: URL[] = [];
  for await (const entry of Deno.readDir(root)) {
    if (entry.isFile) files.push(new URL(entry.name, root));
    else files.push(new URL(`${entry.name}/mod.ts`, root));
  }
  files.sort((a, b) => a.href < b.href ? -1 : 1);
  files.push(new URL("../../core/random.ts", import.meta.url));
  const look = (value: unknown): void => {
    if (Array.isArray(value)) return value.forEach(look);
    if (value === null || (typeof value !== "object" && typeof value !== "function")) return;
    const op = ("op" in value ? value.op : value) as Partial<Op>;
    if (typeof op.uid === "number" && typeof op.kind === "string") ops.set(op.uid, op as Op);
  };
  for (const file of files) Object.values(await import(file.href)).forEach(look);
  return [...ops.values()];
}

/** A small generator of our own, so that inputs do not depend on what is under test. */
function random(seed: number): () => number {
  let s = seed >>> 0;
  return () => {
    s = (Math.imul(s, 1664525) + 1013904223) >>> 0;
    return s / 2 ** 32;
  };
}

function values(input: SampleInput, next: () => number): number[] {
  const { dtype = "f32", low = dtype === "bool" ? 0 : -2, high = 2 } = input;
  return Array.from({ length: sizeOf(input.shape) }, () => {
    const v = low + (high - low) * next();
    return dtype === "f32" || dtype === "f16" || dtype === "bf16" ? v : Math.floor(v);
  });
}

/** The same elements, laid out so that no dimension lies as it would by itself. */
function asView(flat: readonly number[], input: SampleInput): Tensor {
  const dtype: DType = input.dtype ?? "f32";
  const { shape } = input;
  const rank = shape.length;
  if (rank === 0) return tensor(flat[0], { dtype });
  const order = shape.map((_, d) => rank - 1 - d);
  const turned = order.map((d) => shape[d] + 1);
  const big = new Array<number>(sizeOf(turned)).fill(1);
  // Written element by element into the reversed, padded array.
  flat.forEach((v, i) => {
    let rest = i;
    const c = shape.map(() => 0);
    for (let d = rank - 1; d >= 0; d--) {
      c[d] = rest % shape[d];
      rest = Math.floor(rest / shape[d]);
    }
    let at = 0;
    order.forEach((d, k) => at = at * turned[k] + c[d] + 1);
    big[at] = v;
  });
  let t: Tensor = tensor(big, { dtype, shape: turned });
  for (let d = 0; d < rank; d++) t = t.slice(d, 1);
  return t.permute(order);
}

function plain(flat: readonly number[], input: SampleInput): Tensor {
  return tensor([...flat], { dtype: input.dtype ?? "f32", shape: input.shape });
}

function close(
  what: string,
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tolerance: number,
): void {
  assert(got.length === want.length, `${what}: ${got.length} elements, not ${want.length}`);
  for (let i = 0; i < got.length; i++) {
    const [a, b] = [got[i], want[i]];
    if (Object.is(a, b) || (Number.isNaN(a) && Number.isNaN(b))) continue;
    const error = Math.abs(a - b) / Math.max(1, Math.abs(b));
    assert(error <= tolerance, `${what}: element ${i} is ${a}, needs ${b} (off by ${error})`);
  }
}

/** Analytic gradients of Σ out · r against central differences of it. */
async function checkGradient(
  what: string,
  call: (...inputs: Tensor[]) => Tensor,
  inputs: readonly { flat: number[]; input: SampleInput }[],
  view: boolean,
): Promise<void> {
  const make = (flats: readonly (readonly number[])[]): Tensor[] =>
    inputs.map(({ input }, i) => (view ? asView : plain)(flats[i], input));
  const floats = inputs.map(({ input }) => (input.dtype ?? "f32") === "f32" && !input.constant);
  const weigh = (out: Tensor): Tensor => {
    const next = random(99);
    const r = Array.from({ length: out.size }, () => 0.5 + next());
    return out.mul(tensor(r, { shape: out.shape })).sum();
  };
  const variables = make(inputs.map((i) => i.flat)).map((t, i) =>
    floats[i] ? new Variable(t, { requiresGrad: true }) : t
  );
  const wanted = variables.filter((_, i) => floats[i]);
  const grads = grad(weigh(call(...variables)), wanted);
  let which = 0;
  for (let i = 0; i < inputs.length; i++) {
    if (!floats[i]) continue;
    const g = grads[which++];
    const { flat, input } = inputs[i];
    const analytic = g === null ? new Float32Array(flat.length) : await g.data();
    const h = 2 ** -7;
    const picks = Array.from(
      { length: Math.min(flat.length, 6) },
      (_, k) => Math.floor(k * flat.length / Math.min(flat.length, 6)),
    );
    const moved = picks.map((at) => {
      const [up, down] = [1, -1].map((sign) => {
        const changed = inputs.map((x) => x.flat);
        changed[i] = flat.with(at, flat[at] + sign * h);
        return noGrad(() => weigh(call(...make(changed))));
      });
      return [up, down] as const;
    });
    for (let k = 0; k < picks.length; k++) {
      const [up, down] = moved[k];
      const numeric = (await up.item() - await down.item()) / (2 * h);
      const error = Math.abs(numeric - analytic[picks[k]]) / Math.max(1, Math.abs(numeric));
      assert(
        error < 2e-2,
        `${what}: gradient of input ${i} (${input.shape}) at ${picks[k]} is ${
          analytic[picks[k]]
        }, differences give ${numeric}`,
      );
    }
  }
}

async function pointwiseCase(op: PointwiseOp, dtype: DType, view: boolean): Promise<void> {
  const whole = !["f32", "f16", "bf16"].includes(dtype);
  if (op.name.startsWith("to ") || op.name.startsWith("bitcast")) return;
  const shapes = [[3, 1, 7], [1, 5, 7], [7]];
  const next = random(7 + op.uid);
  const inputs: SampleInput[] = op.domain.map(([low, high], i) => ({
    shape: shapes[(i + 2 * op.domain.length) % 3],
    dtype: op.name === "where" && i === 0 ? "bool" : dtype,
    low: whole ? Math.max(dtype === "i32" ? -9 : 0, Math.floor(Math.min(low, 1))) : low,
    high: whole ? Math.max(10, high) : high,
  }));
  if (whole && (op.name === "div" || op.name === "rem")) inputs[1] = { ...inputs[1], low: 1 };
  const flats = inputs.map((input) => values(input, next));
  const { recordPointwise } = await import("../../core/op.ts");
  const call = (...t: Tensor[]): Tensor => recordPointwise(op, t, {});
  const out = call(...flats.map((f, i) => (view ? asView : plain)(f, inputs[i])));
  const got = await out.data();
  // The reference, on what the device really holds.
  const held = await Promise.all(flats.map((f, i) => plain(f, inputs[i]).expand(out.shape).data()));
  const want = Array.from(got, (_, i) => {
    const v = op.reference(...held.map((h) => h[i]));
    const target = hostArray(
      out.dtype === "bf16" || out.dtype === "f16" ? "f32" : out.dtype,
      new ArrayBuffer(4),
      1,
    );
    target[0] = whole && op.name === "div" ? Math.trunc(v) : v;
    return out.dtype === "bool" ? (op.name === "not" ? 1 - (held[0][i] & 1) : v & 1) : target[0];
  });
  const tolerance = dtype === "f16" ? 1e-3 : dtype === "bf16" ? 8e-3 : 4e-6;
  close(`${op.name} on ${dtype}${view ? ", views" : ""}`, got, want, tolerance);
  if (dtype === "f32" && op.gradient) {
    // Away from kinks and edges of the domain.
    const inner = inputs.map((x, i) => ({
      input: x,
      flat: flats[i].map((v) => x.dtype === "bool" ? v : Math.abs(v) < 0.05 ? v + 0.1 : v),
    }));
    await checkGradient(op.name, call, inner, view);
  }
}

async function sampleCase(op: Op, sample: Sample, view: boolean): Promise<void> {
  const what = `${op.name}${sample.name ? `, ${sample.name}` : ""}${view ? ", on views" : ""}`;
  const next = random(31 + op.uid);
  const inputs = sample.inputs.map((input) => ({ input, flat: values(input, next) }));
  const make = (v: boolean): Tensor[] =>
    inputs.map(({ input, flat }) => (v ? asView : plain)(flat, input));
  const got = await sample.call(...make(view)).data();
  // Without a reference of its own, the op on contiguous data is what its views must equal; the
  // values themselves are held against PyTorch in tests/parity.
  const want = await (sample.reference ?? sample.call)(...make(false)).data();
  close(what, got, want, 2e-5);
  if (sample.differentiable !== false && op.gradient) {
    await checkGradient(what, sample.call, inputs, view);
  }
}

forEachDevice("conformance: every op", async (device: Device, t) => {
  const before = useDevice(device);
  try {
    for (const op of await table()) {
      if (op.kind === "pointwise") {
        for (const dtype of op.dtypes) {
          if (
            dtype === "bool" &&
            !["and", "or", "xor", "not", "identity", "where", "eq", "ne"].includes(op.name)
          ) continue;
          await t.step(`${op.name} ${dtype}`, async () => {
            await pointwiseCase(op, dtype, false);
            await pointwiseCase(op, dtype, true);
          });
        }
      }
      for (const sample of op.samples) {
        await t.step(`${op.name}: ${sample.name ?? "sample"}`, async () => {
          await sampleCase(op, sample, false);
          await sampleCase(op, sample, true);
        });
      }
    }
  } finally {
    useDevice(before);
  }
});

Deno.test("conformance: the table holds every kind of op", async () => {
  const ops = await table();
  const kinds = new Set(ops.map((o) => o.kind));
  for (const kind of ["pointwise", "movement", "reduce", "fetch", "kernel"]) {
    assert(kinds.has(kind as Op["kind"]), `no ${kind} op was found`);
  }
  assert(ops.length > 50, `only ${ops.length} ops were found`);
});

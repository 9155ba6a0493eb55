/** Composed ops against PyTorch: values and gradients of ops.safetensors (see ops.py). */

import { assert } from "@std/assert";
import {
  attention,
  concatenate,
  crossEntropy,
  einsum,
  grad,
  layerNorm,
  linearCrossEntropy,
  openSafetensors,
  rmsNorm,
  rope,
  scatterAdd,
  stack,
  type Tensor,
  tensor,
  useDevice,
  Variable,
} from "@graft/ml";
import { gather } from "../../core/ops/gather.ts";
import { forEachDevice } from "../devices.ts";

const cases: Record<string, (...x: Tensor[]) => Tensor> = {
  softmax: (x) => x.softmax(1),
  log_softmax: (x) => x.logSoftmax(),
  logsumexp: (x) => x.logsumexp([0, 2]),
  variance: (x) => x.var(1),
  mean: (x) => x.mean([0, 1]),
  layer_norm: (x, w, b) => layerNorm(x, w, b),
  rms_norm: (x, w) => rmsNorm(x, w),
  gelu: (x) => x.gelu(),
  gelu_tanh: (x) => x.gelu("tanh"),
  silu: (x) => x.silu(),
  softplus: (x) => x.softplus(),
  erf: (x) => x.erf(),
  pow: (x, y) => x.pow(y),
  clamp: (x) => x.clamp(-0.5, 0.7),
  cumsum: (x) => x.cumsum(1),
  sort: (x) => x.sort(1, true).values,
  argsort: (x) => x.argsort(1),
  top_k: (x) => x.topK(4, 1).values,
  argmax: (x) => x.argmax(0),
  prod: (x) => x.prod(1),
  gather: (x, i) => gather(x, 1, i),
  take: (x, i) => x.take(i),
  scatter_add: (s, i) => scatterAdd(s, 1, i, 4),
  one_hot: (i) => i.oneHot(5),
  tril: (x) => x.tril(-1),
  triu: (x) => x.triu(1),
  concatenate: (...x) => concatenate(x, 1),
  stack: (...x) => stack(x, 1),
  pad: (x) => x.pad(1, 1, 2, 1.5),
  flip: (x) => x.flip([0, 1]),
  slice: (x) => x.slice(1, 1, 6, 2),
  max: (x) => x.max(1),
  einsum_product: (a, b) => einsum("bij,bkj->bik", a, b),
  einsum_outer: (a, b) => einsum("i,j->ji", a, b),
  einsum_three: (a, b, c) => einsum("ij,jk,kl->il", a, b, c),
  matmul: (a, b) => a.matmul(b),
  cross_entropy: (x, t) => crossEntropy(x, t),
  linear_cross_entropy: (h, w, t) => linearCrossEntropy(h, w, t, { reduction: "sum", chunk: 3 }),
  rope: (x, c, s) => rope(x, c, s),
  attention_causal: (q, k, v) => attention(q, k, v, { causal: true }),
  attention_grouped: (q, k, v) => attention(q, k, v),
};

forEachDevice("parity with PyTorch: composed ops", async (device, t) => {
  const before = useDevice(device);
  const file = await openSafetensors(
    new URL("ops.safetensors", import.meta.url).pathname,
  );
  try {
    const load = async (
      name: string,
    ): Promise<{ data: Float32Array | Int32Array; shape: number[] }> => {
      const entry = file.entries.get(name)!;
      const bytes = await file.read(name);
      const buffer = new Uint8Array(bytes).buffer;
      return {
        data: entry.dtype === "I32" ? new Int32Array(buffer) : new Float32Array(buffer),
        shape: [...entry.shape],
      };
    };
    const names = new Set([...file.entries.keys()].map((k) => k.split(".")[0]));
    assert(names.size === Object.keys(cases).length, "every case of the file is run");
    for (const [name, call] of Object.entries(cases)) {
      await t.step(name, async () => {
        const inputs: Tensor[] = [];
        for (let i = 0; file.entries.has(`${name}.in.${i}`); i++) {
          const { data, shape } = await load(`${name}.in.${i}`);
          const x = tensor(data, { shape });
          inputs.push(x.dtype === "f32" ? new Variable(x, { requiresGrad: true }) : x);
        }
        const out = call(...inputs);
        const want = await load(`${name}.out`);
        same(`${name}: shape`, out.shape, want.shape, 0);
        same(name, await out.data(), want.data, 2e-5);
        const wanted = inputs.map((_, i) => i).filter((i) => file.entries.has(`${name}.grad.${i}`));
        if (wanted.length === 0) return;
        const weight = Float32Array.from({ length: out.size }, (_, i) => Math.cos(i));
        const loss = out.mul(tensor(weight, { shape: out.shape })).sum();
        const grads = grad(loss, wanted.map((i) => inputs[i]));
        for (const [k, i] of wanted.entries()) {
          const { data } = await load(`${name}.grad.${i}`);
          same(`${name}: gradient ${i}`, await grads[k]!.data(), data, 1e-4);
        }
      });
    }
  } finally {
    await file.close();
    useDevice(before);
  }
});

function same(
  what: string,
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tolerance: number,
): void {
  assert(got.length === want.length, `${what}: ${got.length} elements, not ${want.length}`);
  for (let i = 0; i < got.length; i++) {
    const error = Math.abs(got[i] - want[i]) / Math.max(1, Math.abs(want[i]));
    assert(error <= tolerance, `${what}: element ${i} is ${got[i]}, PyTorch has ${want[i]}`);
  }
}

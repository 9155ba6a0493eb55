/**
 * The small GPT in jax-js: the whole step, AdamW included, is one `jit`.
 *
 * @module
 */

import { blockUntilReady, jit, nn, numpy as np, tree, valueAndGrad } from "@jax-js/jax";
import { batch, type GptSizes, type Method, SPEC, trains, weights } from "../small_gpt/spec.ts";

/** Arrays by name. */
export type Weights = { [name: string]: np.Array };

const { epsilon, scale } = SPEC;

// jax-js counts references: a function takes its arguments over, `.ref` is one more.

function norm(x: np.Array, w: Weights, name: string): np.Array {
  return nn.standardize(x, -1, { epsilon }).mul(w[`${name}.weight`].ref)
    .add(w[`${name}.bias`].ref);
}

/** [..., in] -> [..., out] */
function linear(x: np.Array, w: Weights, name: string): np.Array {
  return np.matmul(x, w[`${name}.weight`].ref.transpose()).add(w[`${name}.bias`].ref);
}

/**
 * i32 [rows] -> [rows, classes] of ones and zeros, by a comparison that fuses: the library's own is a
 * slice of an identity matrix of [classes, classes], which 32,000 classes do not fit.
 */
export function oneHot(ids: np.Array, classes: number): np.Array {
  const all = np.arange(0, classes, 1, { dtype: np.int32 }).reshape([1, classes]);
  return ids.reshape([ids.shape[0], 1]).equal(all).astype(np.float32);
}

function loss(
  { layers, size, heads, sequence, vocabulary }: GptSizes,
  w: Weights,
  inputs: np.Array,
  targets: np.Array,
): np.Array {
  const rows = inputs.shape[0];
  const [b, t] = [rows / sequence, sequence];
  // The gradient of `np.take` is a scatter, which `jit` refuses: a product with ones and zeros instead.
  let x = np.matmul(oneHot(inputs, vocabulary), w["wte.weight"].ref)
    .reshape([b, t, size]).add(w["wpe.weight"].ref); // [B, T, D]
  for (let i = 0; i < layers; i++) {
    const name = `h.${i}.attn.c_attn`;
    const h = norm(x.ref, w, `h.${i}.ln_1`);
    let qkv = linear(h.ref, w, name); // [B, T, 3 D]
    if (`${name}.lora_A` in w) {
      const low = np.matmul(h, w[`${name}.lora_A`].ref.transpose()).mul(scale); // [B, T, r]
      qkv = qkv.add(np.matmul(low, w[`${name}.lora_B`].ref.transpose()));
    } else h.dispose();
    const [q, k, v] = np.split(qkv, 3, -1)
      .map((part) => part.reshape([b, t, heads, size / heads]));
    const y = nn.dotProductAttention(q, k, v, { isCausal: true }).reshape([b, t, size]);
    x = x.add(linear(y, w, `h.${i}.attn.c_proj`));
    const inner = nn.gelu(linear(norm(x.ref, w, `h.${i}.ln_2`), w, `h.${i}.mlp.c_fc`));
    x = x.add(linear(inner, w, `h.${i}.mlp.c_proj`));
  }
  const hidden = norm(x, w, "ln_f").reshape([rows, size]);
  const logits = np.matmul(hidden, w["wte.weight"].ref.transpose()); // [B T, V]
  const picked = nn.logSoftmax(logits, -1).mul(oneHot(targets, vocabulary));
  tree.dispose(w);
  return picked.sum().mul(-1 / rows);
}

/** What a step changes: the weights in training, and AdamW's moments. */
export type State = { trained: Weights; first: Weights; second: Weights };

/** What AdamW needs to know of step `index`: the size of its step, and the second moment's correction. */
export function corrections(index: number): [stepSize: np.Array, correction: np.Array] {
  const { lr, betas: [beta1, beta2] } = SPEC;
  return [
    np.array(lr / (1 - beta1 ** (index + 1))).reshape([]),
    np.array(1 / Math.sqrt(1 - beta2 ** (index + 1))).reshape([]),
  ];
}

/** The state after a step of AdamW, written out for use in a `jit`. */
export function adamW(
  { trained, first, second }: State,
  gradients: Weights,
  stepSize: np.Array,
  correction: np.Array,
): State {
  const { lr, betas: [beta1, beta2], adamEpsilon, weightDecay } = SPEC;
  const next: State = { trained: {}, first: {}, second: {} };
  for (const name of Object.keys(trained)) {
    const g = gradients[name];
    const m = first[name].mul(beta1).add(g.ref.mul(1 - beta1));
    const v = second[name].mul(beta2).add(np.square(g).mul(1 - beta2));
    const denominator = np.sqrt(v.ref).mul(correction.ref).add(adamEpsilon);
    next.trained[name] = trained[name].mul(1 - lr * weightDecay)
      .sub(m.ref.div(denominator).mul(stepSize.ref));
    next.first[name] = m;
    next.second[name] = v;
  }
  stepSize.dispose();
  correction.dispose();
  return next;
}

/** The GPT in training, on the default device. */
export function jaxJsGpt(
  sizes: GptSizes,
  method: Method,
): { step(index: number): Promise<number> } {
  const trained: Weights = {};
  const frozen: Weights = {};
  const first: Weights = {};
  const second: Weights = {};
  for (const [name, { shape, data }] of weights(sizes, method)) {
    (trains(method, name) ? trained : frozen)[name] = np.array(data).reshape([...shape]);
    if (!trains(method, name)) continue;
    first[name] = np.zeros([...shape]);
    second[name] = np.zeros([...shape]);
  }
  const lossOf = (trained: Weights, frozen: Weights, inputs: np.Array, targets: np.Array) =>
    loss(sizes, { ...trained, ...frozen }, inputs, targets);

  const update = jit((
    state: State,
    frozen: Weights,
    inputs: np.Array,
    targets: np.Array,
    stepSize: np.Array,
    correction: np.Array,
  ): [np.Array, State, Weights] => {
    // Gradients of frozen weights are asked for, and thrown away by the caller: with them among its
    // results `jit` fuses less, computes less twice, and takes half as long as without.
    const [value, [gradients, unused]] = valueAndGrad(lossOf, { argnums: [0, 1] })(
      tree.ref(state.trained),
      frozen,
      inputs,
      targets,
    );
    return [value, adamW(state, gradients, stepSize, correction), unused as Weights];
  });

  let state: State = { trained, first, second };
  return {
    async step(index: number): Promise<number> {
      const { inputs, targets } = batch(sizes, index);
      const [value, next, unused] = update(
        state,
        tree.ref(frozen),
        np.array(inputs),
        np.array(targets),
        ...corrections(index),
      );
      state = next;
      tree.dispose(unused);
      await blockUntilReady(state);
      return (await value.data())[0];
    },
  };
}

/**
 * The small GPT in TensorFlow.js, and the functions of it that are measured alone.
 *
 * @module
 */

import * as tf from "@tensorflow/tfjs";
import { batch, type GptSizes, type Method, SPEC, trains, weights } from "../small_gpt/spec.ts";

/** Normalisation over the last dimension. */
export function layerNorm(x: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor): tf.Tensor {
  const { mean, variance } = tf.moments(x, -1, true);
  return x.sub(mean).mul(variance.add(SPEC.epsilon).rsqrt()).mul(weight).add(bias);
}

/** Causal attention of [B, H, T, D], with a mask made once for length `t`. */
export function causalAttention(
  t: number,
): (q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) => tf.Tensor {
  const hidden = Float32Array.from(
    { length: t * t },
    (_, i) => i % t > Math.floor(i / t) ? -1e9 : 0,
  );
  const mask = tf.keep(tf.tensor(hidden, [t, t]));
  return (q, k, v) => {
    const scores = tf.matMul(q, k, false, true).mul(1 / Math.sqrt(q.shape[3]!)).add(mask);
    return tf.matMul(tf.softmax(scores), v);
  };
}

/** GELU by tanh, of which the library has none. */
function gelu(x: tf.Tensor): tf.Tensor {
  const inner = x.add(x.mul(x).mul(x).mul(0.044715)).mul(Math.sqrt(2 / Math.PI));
  return x.mul(0.5).mul(inner.tanh().add(1));
}

/** The GPT in training. */
export function tfjsGpt(
  sizes: GptSizes,
  method: Method,
): { step(index: number): Promise<number> } {
  const { layers, size, heads, sequence: t, batch: b, vocabulary } = sizes;
  const w: Record<string, tf.Variable> = {};
  const trained: tf.Variable[] = [];
  for (const [name, { shape, data }] of weights(sizes, method)) {
    w[name] = tf.variable(tf.tensor(data, [...shape]), trains(method, name));
    if (trains(method, name)) trained.push(w[name]);
  }
  const attention = causalAttention(t);
  const product = (x: tf.Tensor, name: string): tf.Tensor =>
    tf.matMul(x as tf.Tensor2D, w[name] as tf.Tensor as tf.Tensor2D, false, true);
  const linear = (x: tf.Tensor, name: string): tf.Tensor =>
    product(x, `${name}.weight`).add(w[`${name}.bias`]);
  const norm = (x: tf.Tensor, name: string): tf.Tensor =>
    layerNorm(x, w[`${name}.weight`], w[`${name}.bias`]);

  /** [B T, D] -> [B T, D] */
  const block = (x: tf.Tensor, i: number): tf.Tensor => {
    const name = `h.${i}.attn.c_attn`;
    const h = norm(x, `h.${i}.ln_1`);
    let qkv = linear(h, name); // [B T, 3 D]
    if (`${name}.lora_A` in w) {
      const low = product(h, `${name}.lora_A`).mul(SPEC.scale); // [B T, r]
      qkv = qkv.add(product(low, `${name}.lora_B`));
    }
    const [q, k, v] = tf.split(qkv, 3, -1)
      .map((part) => part.reshape([b, t, heads, size / heads]).transpose([0, 2, 1, 3]));
    const y = attention(q, k, v).transpose([0, 2, 1, 3]).reshape([b * t, size]);
    x = x.add(linear(y, `h.${i}.attn.c_proj`));
    return x.add(
      linear(gelu(linear(norm(x, `h.${i}.ln_2`), `h.${i}.mlp.c_fc`)), `h.${i}.mlp.c_proj`),
    );
  };

  // A lookup's gradient is missing on wasm: where the table is trained, products with ones and zeros.
  const embed = (ids: tf.Tensor1D): tf.Tensor =>
    method === "full"
      ? tf.matMul(
        tf.oneHot(ids, vocabulary).toFloat() as tf.Tensor2D,
        w["wte.weight"] as tf.Tensor as tf.Tensor2D,
      )
      : tf.gather(w["wte.weight"] as tf.Tensor, ids);

  const loss = (inputs: tf.Tensor1D, targets: tf.Tensor1D): tf.Scalar => {
    let x = embed(inputs).reshape([b, t, size]).add(w["wpe.weight"]).reshape([b * t, size]);
    for (let i = 0; i < layers; i++) x = block(x, i);
    const logits = product(norm(x, "ln_f"), "wte.weight"); // [B T, V]
    return tf.losses.softmaxCrossEntropy(tf.oneHot(targets, vocabulary), logits) as tf.Scalar;
  };

  const { lr, betas, adamEpsilon, weightDecay } = SPEC;
  const optimizer = tf.train.adam(lr, ...betas, adamEpsilon);
  return {
    async step(index: number): Promise<number> {
      const { inputs, targets } = batch(sizes, index);
      const value = tf.tidy(() => {
        const ids = tf.tensor1d(inputs, "int32");
        const next = tf.tensor1d(targets, "int32");
        const { value, grads } = tf.variableGrads(() => loss(ids, next), trained);
        // Its Adam has no decoupled weight decay.
        for (const p of trained) p.assign(p.mul(1 - lr * weightDecay));
        optimizer.applyGradients(grads as tf.NamedTensorMap as Record<string, tf.Variable>);
        return value;
      });
      const [number] = await value.data();
      value.dispose();
      return number;
    },
  };
}

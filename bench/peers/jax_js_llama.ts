/**
 * stories15M in jax-js: its checkpoint, and the layers.
 *
 * @module
 */

import { nn, numpy as np } from "@jax-js/jax";
import { SPEC } from "../small_gpt/spec.ts";
import type { Weights } from "./jax_js_gpt.ts";

/** What its config.json says. */
export interface Config {
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  readonly num_hidden_layers: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly vocab_size: number;
}

/** The name of the table of embeddings, which is the head too. */
export const EMBEDDING = "model.embed_tokens.weight";

/** The checkpoint's tensors, all f32, by name. */
export async function readLlama(folder: string): Promise<{ config: Config; weights: Weights }> {
  const config = JSON.parse(await Deno.readTextFile(`${folder}/config.json`));
  const { buffer } = await Deno.readFile(`${folder}/model.safetensors`);
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const weights: Weights = {};
  for (const [name, entry] of Object.entries<{ shape: number[]; data_offsets: number[] }>(header)) {
    if (name === "__metadata__") continue;
    const [first, end] = entry.data_offsets;
    const data = new Float32Array(buffer.slice(start + first, start + end));
    weights[name] = np.array(data).reshape(entry.shape);
  }
  return { config, weights };
}

// jax-js counts references: a function takes its arguments over, `.ref` is one more.

/** Cosines, and sines of which those for the first half of a head are negative, each [T, 1, 2, H / 2]. */
export function angles(
  { hidden_size, num_attention_heads, rope_theta }: Config,
  t: number,
): np.Array[] {
  const half = hidden_size / num_attention_heads / 2;
  const [cos, sin] = [new Float32Array(t * 2 * half), new Float32Array(t * 2 * half)];
  for (let i = 0; i < cos.length; i++) {
    const angle = Math.floor(i / (2 * half)) * rope_theta ** (-(i % half) / half);
    cos[i] = Math.cos(angle);
    sin[i] = Math.sin(angle) * (i % (2 * half) < half ? -1 : 1);
  }
  return [cos, sin].map((data) => np.array(data).reshape([t, 1, 2, half]));
}

/** [B, T, N, H]. The halves of a head change places by a flip, which fuses as no concatenation does. */
function rope(x: np.Array, [cos, sin]: np.Array[]): np.Array {
  const [b, t, heads, size] = x.shape;
  const halves = x.reshape([b, t, heads, 2, size / 2]);
  return halves.ref.mul(cos.ref).add(np.flip(halves, 3).mul(sin.ref)).reshape([b, t, heads, size]);
}

function norm(x: np.Array, weight: np.Array, { rms_norm_eps }: Config): np.Array {
  const mean = np.mean(np.square(x.ref), -1, { keepdims: true });
  return x.div(np.sqrt(mean.add(rms_norm_eps))).mul(weight.ref);
}

/** [..., in] -> [..., out], with LoRA's part where `w` has one. */
function linear(x: np.Array, w: Weights, name: string): np.Array {
  const y = np.matmul(x.ref, w[`${name}.weight`].ref.transpose());
  if (!(`${name}.lora_A` in w)) {
    x.dispose();
    return y;
  }
  const low = np.matmul(x, w[`${name}.lora_A`].ref.transpose()).mul(SPEC.scale); // [..., r]
  return y.add(np.matmul(low, w[`${name}.lora_B`].ref.transpose()));
}

/** What attends, given a layer's queries, keys and values [B, T, N, H]. */
export type Attend = (layer: number, q: np.Array, k: np.Array, v: np.Array) => np.Array;

/** The layers and the last norm: [B, T, D] -> [B, T, D]. `w` stays. */
export function hidden(
  x: np.Array,
  w: Weights,
  config: Config,
  turn: np.Array[],
  attend: Attend,
): np.Array {
  const [b, t, size] = x.shape;
  const heads = config.num_attention_heads;
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const layer = `model.layers.${i}`;
    const h = norm(x.ref, w[`${layer}.input_layernorm.weight`], config);
    const [q, k, v] = ["q", "k", "v"].map((p) =>
      linear(h.ref, w, `${layer}.self_attn.${p}_proj`).reshape([b, t, heads, size / heads])
    );
    h.dispose();
    const y = attend(i, rope(q, turn), rope(k, turn), v).reshape([b, t, size]);
    x = x.add(linear(y, w, `${layer}.self_attn.o_proj`));
    const inner = norm(x.ref, w[`${layer}.post_attention_layernorm.weight`], config);
    const gate = nn.silu(linear(inner.ref, w, `${layer}.mlp.gate_proj`));
    const up = linear(inner, w, `${layer}.mlp.up_proj`);
    x = x.add(linear(gate.mul(up), w, `${layer}.mlp.down_proj`));
  }
  return norm(x, w["model.norm.weight"], config);
}

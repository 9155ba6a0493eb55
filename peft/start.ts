/**
 * Starts of A and B that are computed on the host: PiSSA (Meng et al. 2024), OLoRA (Büyükakyüz 2024),
 * LoftQ (Li et al. 2023), EVA (Paischer et al. 2024) and orthogonal ones.
 *
 * @module
 */

import { normal, read, type Tensor, tensor, Variable } from "../core/mod.ts";
import type { Module } from "../nn/mod.ts";
import { type LoraConfig, resolveLoraConfig } from "./config.ts";
import { type EvaPlan, planEva } from "./eva.ts";
import { LoraEmbedding } from "./layers.ts";
import { type Columns, columns, qr, rowMajor, topSvd, transposed } from "./linalg.ts";
import { startLoftq } from "./loftq.ts";
import { attach, deleteAdapter, type InjectOptions, withHeads } from "./lora.ts";
import type { LoraPair } from "./pair.ts";
import { adapterParameters, loraLayers, setActive } from "./switch.ts";
import { findTargets } from "./target.ts";

/** Options of {@linkcode injectFromBase}. */
export interface InjectFromBaseOptions extends InjectOptions {
  /** What the start "eva" looks at: batches as the model's `loss` takes them, all of which are run. */
  readonly batches?: Iterable<object>;
}

/**
 * As `inject`, and with the starts that compute on the host: "pissa" (the weight's largest singular
 * values), "olora" (its QR decomposition) and "orthogonal": the model computes what it did, because the
 * start is taken off again, while the base's weights stay as they are. The whole decomposition takes a
 * while for large layers; "pissa_niter_[number]" is quicker and less exact.
 *
 * "loftq" packs the base's weights (see `quantize`), and starts the adapter at what packing leaves over:
 * the model computes nearly what it did. The base stays packed when the adapter goes. To train on, save
 * it with `savePretrained` beside the adapter, and load both with `{ quantize }` of the same format.
 *
 * "eva" runs the model on `batches` of the data: A starts as the directions in which a layer's inputs vary
 * most, B as zero. Ranks go where they explain most: a layer's is from 0, which leaves it out, to rho · r,
 * and their sum is what it would have been. There have to be more tokens that count than rho · r.
 *
 * Throws as `inject` does, and where batches are missing or too few; then the model is as it was.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { countParameters, injectFromBase } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * await injectFromBase(model, { r: 4, init_lora_weights: "pissa" });
 * console.log(countParameters(model).trainable); // 256
 * ```
 *
 * @example From data
 * ```ts
 * import { init } from "@graft/ml";
 * import { DataLoader, pack } from "@graft/ml/data";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { injectFromBase } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * const ids = Int32Array.from({ length: 65 }, (_, i) => i * i % 50);
 * const batches = new DataLoader(pack([{ ids, promptLength: 1 }], 16), { batchSize: 2, epochs: 1 });
 * await injectFromBase(model, { r: 4, init_lora_weights: "eva" }, { batches });
 * ```
 */
export async function injectFromBase<M extends Module>(
  model: M,
  config: LoraConfig,
  options: InjectFromBaseOptions = {},
): Promise<M> {
  const { name = "default", trainable = true, batches } = options;
  let resolved = resolveLoraConfig(withHeads(model, config), "LoraConfig", options.warn);
  let targets = findTargets(model, resolved);
  const isEva = resolved.init_lora_weights === "eva";
  if (isEva !== (batches !== undefined)) {
    throw new TypeError(
      'LoRA: init_lora_weights "eva" and the option batches belong together, got ' +
        (isEva ? "no batches" : `batches for ${JSON.stringify(resolved.init_lora_weights)}`),
    );
  }
  let plan: EvaPlan | null = null;
  if (batches) {
    plan = await planEva(model, targets, resolved, batches, name);
    resolved = plan.config;
    targets = findTargets(model, resolved);
  }
  attach(model, targets, resolved, name);
  try {
    if (plan) assignRows(model, name, plan.rows);
    if (resolved.init_lora_weights === "orthogonal") await startOrthogonal(model, name);
    if (resolved.init_lora_weights === "loftq") await startLoftq(model, name);
    await startFromBase(model, name);
  } catch (error) {
    deleteAdapter(model, name);
    throw error;
  }
  model.freeze();
  for (const p of adapterParameters(model, name)) p.requiresGrad = trainable;
  setActive(model, name);
  return model;
}

/** Gives an adapter the start that its configuration takes from the base's weights, if it does. */
export async function startFromBase(model: Module, name: string): Promise<void> {
  for (const [path, layer] of loraLayers(model)) {
    const pair = layer.adapters.get(name);
    const init = pair?.config.init_lora_weights;
    if (!pair || typeof init !== "string" || !/^(pissa|olora)/.test(init)) continue;
    if (layer instanceof LoraEmbedding) {
      throw new TypeError(
        `LoRA: init_lora_weights "${init}" is for linear layers; ${path} is none`,
      );
    }
    const { inFeatures, outFeatures } = layer;
    const r = pair.a.shape[0];
    if (r > Math.min(inFeatures, outFeatures)) {
      throw new RangeError(
        `LoRA: init_lora_weights "${init}" needs a rank of at most the layer's sizes ` +
          `[${outFeatures}, ${inFeatures}], got ${r} for ${path}`,
      );
    }
    const values = await layer.matrix().data() as Float32Array;
    const w = columns(values, outFeatures, inFeatures);
    const { a, b } = init === "olora" ? olora(w, r) : pissa(w, r, pair.scale, init);
    assign(pair, rowMajor(a, r), rowMajor(b, outFeatures));
    pair.start = { a: new Variable(pair.a.mul(1)), b: new Variable(pair.b.mul(1)) };
    await read(pair.start.a.sum(), pair.start.b.sum()); // before anything else is written there
  }
}

/** B: the first columns of Q. A: the first rows of R, W = Q R. */
function olora(w: Columns, r: number): { a: Columns; b: Columns } {
  const { q, r: upper } = qr(w);
  return { a: upper.map((column) => column.slice(0, r)), b: q.slice(0, r) };
}

/** scale · B A are the r largest singular values' part of W, shared out evenly between B and A. */
function pissa(w: Columns, r: number, scale: number, init: string): { a: Columns; b: Columns } {
  const iterations = init.match(/^pissa_niter_(\d+)$/)?.[1];
  const { u, s, v } = topSvd(w, r, iterations === undefined ? undefined : Number(iterations));
  const weighted = (vectors: Columns): Columns =>
    vectors.map((x, i) => x.map((y) => y * Math.sqrt(s[i] / scale)));
  return { a: transposed(weighted(v), w.length), b: weighted(u) };
}

/** A's rows and B's columns are combinations of orthogonal vectors: B A = 0, but neither is 0. */
async function startOrthogonal(model: Module, name: string): Promise<void> {
  for (const [path, layer] of loraLayers(model)) {
    const pair = layer.adapters.get(name);
    if (!pair) continue;
    if (layer instanceof LoraEmbedding) {
      throw new TypeError(
        `LoRA: init_lora_weights "orthogonal" is for linear layers; ${path} is none`,
      );
    }
    const { inFeatures, outFeatures } = layer;
    const r = pair.a.shape[0], half = r / 2;
    const square = await normal([r, r]).data();
    const q = transposed(qr(columns(square, r, r)).q, r); // the rows of Q
    const rows = (from: number): Tensor => {
      const picked = q.filter((_, i) => i % 2 === from); // half vectors of r
      return tensor(rowMajor(transposed(picked, r), half), { shape: [half, r] });
    };
    const a = normal([inFeatures, half], { std: 0.1 }).matmul(rows(0)).transpose();
    const b = normal([outFeatures, half], { std: 0.1 }).matmul(rows(1));
    pair.a.assign(a);
    pair.b.assign(b);
  }
}

/** Starts A of each layer as its rows. */
function assignRows(model: Module, name: string, rows: ReadonlyMap<string, Columns>): void {
  for (const [path, layer] of loraLayers(model)) {
    const a = layer.adapters.get(name)?.a, own = rows.get(path);
    if (!a || !own) continue;
    a.assign(tensor(rowMajor(transposed(own, a.shape[1]), own.length), { shape: a.shape }));
  }
}

function assign(
  pair: LoraPair,
  a: Float32Array<ArrayBuffer>,
  b: Float32Array<ArrayBuffer>,
): void {
  pair.a.assign(tensor(a, { shape: pair.a.shape }));
  pair.b.assign(tensor(b, { shape: pair.b.shape }));
}

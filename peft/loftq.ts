/**
 * LoftQ: a packed base and a low-rank adapter that are fitted to a weight together (Li et al. 2023).
 *
 * @module
 */

import { tensor } from "../core/mod.ts";
import { Conv1D, type Module, QuantizedParameter, tiedParameters } from "../nn/mod.ts";
import { LoraEmbedding, type LoraLayer } from "./layers.ts";
import { type Columns, columns, product, rowMajor, topSvd, transposed } from "./linalg.ts";
import type { LoraPair } from "./pair.ts";
import { loraLayers } from "./switch.ts";

/** What takes the place of a layer's weight, and where its adapter starts. */
interface Start {
  readonly layer: LoraLayer;
  readonly pair: LoraPair;
  readonly packed: QuantizedParameter;
  readonly a: Columns;
  readonly b: Columns;
}

/**
 * Packs the weights of all layers that the adapter `name` stands beside, and starts it at what that
 * leaves over: W ≈ Q + scale · B A. Changes nothing before all of it is computed.
 *
 * Throws an `Error` that names the layer that cannot be packed.
 */
export async function startLoftq(model: Module, name: string): Promise<void> {
  const tied = tiedParameters(model);
  const starts: Start[] = [];
  try {
    for (const [path, layer] of loraLayers(model)) {
      const pair = layer.adapters.get(name);
      if (!pair) continue;
      check(path, layer, tied.has(layer.weight));
      starts.push({ layer, pair, ...await fit(layer, pair) });
    }
  } catch (error) {
    for (const { packed } of starts) packed.dispose();
    throw error;
  }
  for (const { layer, pair, packed, a, b } of starts) {
    const { weight } = layer;
    packed.name = weight.name;
    layer.weight = packed;
    weight.dispose();
    pair.a.assign(tensor(rowMajor(a, pair.a.shape[0]), { shape: pair.a.shape }));
    pair.b.assign(tensor(rowMajor(b, pair.b.shape[0]), { shape: pair.b.shape }));
    pair.startMagnitude(layer);
  }
}

function check(path: string, layer: LoraLayer, tied: boolean): void {
  const what = 'LoRA: init_lora_weights "loftq"';
  if (layer instanceof LoraEmbedding) {
    throw new TypeError(`${what} is for linear layers; ${path} is none`);
  }
  if (layer.weight instanceof QuantizedParameter) {
    throw new Error(
      `${what} fits a packed base to floats, and ${path} is packed already; load the model without ` +
        "quantize",
    );
  }
  if (tied) {
    throw new Error(`${what} packs the base, and ${path} shares its weight; exclude it`);
  }
  if (layer.adapters.size > 1) {
    throw new Error(
      `${what} changes the base, which other adapters of ${path} are made for: ` +
        [...layer.adapters.keys()].slice(0, -1).join(", "),
    );
  }
}

/** Packing and the best low-rank part in turns: each is fitted to what the other leaves. */
async function fit(
  layer: LoraLayer,
  pair: LoraPair,
): Promise<{ packed: QuantizedParameter; a: Columns; b: Columns }> {
  const { loftq_bits, loftq_iter } = pair.config.loftq_config;
  const turned = layer instanceof Conv1D;
  const format = loftq_bits === 8 ? "int8" : "nf4";
  const [out, inner] = [pair.b.shape[0], pair.a.shape[1]];
  const r = pair.a.shape[0];
  if (r > Math.min(out, inner)) {
    throw new RangeError(
      `LoRA: init_lora_weights "loftq" needs a rank of at most the layer's sizes [${out}, ${inner}], ` +
        `got ${r}`,
    );
  }
  const w = columns(await layer.matrix().data() as Float32Array, out, inner);
  const shape = turned ? [inner, out] : [out, inner];
  let rest = w; // what is packed next: W - B A
  for (let i = 1;; i++) {
    const values = rowMajor(turned ? transposed(rest, out) : rest, shape[0]);
    const packed = QuantizedParameter.from(tensor(values, { shape }), { format, turned });
    const q = columns(await packed.matrix.dequantize().data(), out, inner);
    const { u, s, v } = topSvd(minus(w, q), r);
    const weighted = (vectors: Columns, factor: number): Columns =>
      vectors.map((x, k) => x.map((y) => y * Math.sqrt(s[k] * factor)));
    if (i === loftq_iter) {
      const share = 1 / pair.scale;
      return { packed, a: transposed(weighted(v, share), inner), b: weighted(u, share) };
    }
    packed.dispose();
    rest = minus(w, product(weighted(u, 1), out, transposed(weighted(v, 1), inner)));
  }
}

function minus(x: Columns, y: Columns): Columns {
  return x.map((column, c) => column.map((value, r) => value - y[c][r]));
}

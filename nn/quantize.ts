/**
 * Models whose frozen weights are held in packed form, and back.
 *
 * @module
 */

import {
  countNonfinite,
  type Device,
  noGrad,
  QuantizedMatrix,
  type QuantizedOptions,
  type Tensor,
} from "../core/mod.ts";
import { Conv1D, Linear } from "./linear.ts";
import type { PretrainedInfo } from "./models/pretrained_model.ts";
import { type Module, Parameter, tiedParameters } from "./module.ts";
import { QuantizedParameter } from "./quantized.ts";

/** Options of {@linkcode quantize}. */
export interface QuantizeOptions extends QuantizedOptions {
  /**
   * Paths of the layers whose weights are packed. Default: every linear layer of a model but its head,
   * as bitsandbytes does.
   */
  readonly targets?: RegExp;
  /** Paths of layers to leave out. */
  readonly skip?: RegExp;
}

/**
 * Packs the weights of linear layers into 8 or 4 bits, one after another, and frees their floats: the
 * base of QLoRA. Embeddings, norms, biases and heads stay as they are. Packed weights are frozen; keys
 * stay what they were, and a saved file holds floats, which give the same codes when they are packed
 * again.
 *
 * Optimizers that hold the old weights have to be made anew.
 *
 * Throws an `Error` that names the layer where its sizes do not fit, an element is not finite, or it
 * shares its weight with another, and where no layer is named; then nothing has changed.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM, quantize } from "@graft/ml/nn";
 * import { inject } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * await quantize(model, { format: "nf4" });
 * inject(model, { r: 4 });
 * console.log(model.trainable().length); // 4
 * ```
 */
export async function quantize<M extends Module>(
  model: M,
  options: QuantizeOptions = {},
): Promise<M> {
  const layers = layersToPack(model, options);
  for (const [path, { weight }] of layers) {
    if (await isFinite(weight)) continue;
    throw new RangeError(`quantize: the weight of ${path} is not finite`);
  }
  for (const [, layer] of layers) {
    const { weight } = layer;
    const packed = QuantizedParameter.from(weight, { ...options, turned: isTurned(layer) });
    packed.name = weight.name;
    // Run now, so that the floats of one layer go before those of the next are needed.
    await settle(packed.device);
    layer.weight = packed;
    weight.dispose();
  }
  return model;
}

/**
 * Puts packed weights that hold nothing yet where those of linear layers are: what is loaded next is
 * packed as it comes, and the floats of all layers are never there at once.
 *
 * Throws as {@linkcode quantize} does.
 */
export function makePacked(model: Module, options: QuantizeOptions = {}): void {
  for (const [, layer] of layersToPack(model, options)) {
    const { weight, inFeatures, outFeatures } = layer;
    const matrix = new QuantizedMatrix([outFeatures, inFeatures], options, weight.device);
    layer.weight = new QuantizedParameter(matrix, isTurned(layer));
    weight.dispose();
  }
}

/**
 * Puts floats in the place of packed weights: the numbers stay what the codes stand for. They are
 * frozen until `unfreeze()`.
 */
export async function dequantize<M extends Module>(model: M): Promise<M> {
  for (const layer of model.modules()) {
    if (!isLinear(layer) || !(layer.weight instanceof QuantizedParameter)) continue;
    const packed = layer.weight;
    const weight = new Parameter(noGrad(() => packed.mul(1)), { requiresGrad: false });
    weight.name = packed.name;
    await settle(packed.device);
    layer.weight = weight;
    packed.dispose();
  }
  return model;
}

function isLinear(module: Module): module is Linear | Conv1D {
  return module instanceof Linear || module instanceof Conv1D;
}

function isTurned(layer: Linear | Conv1D): boolean {
  return layer instanceof Conv1D;
}

async function settle(device: Device): Promise<void> {
  if (device.backend !== null) await device.flush();
}

/** Whether all elements are finite; on `meta`, where there are none, true. */
async function isFinite(x: Tensor): Promise<boolean> {
  if (x.device.backend === null) return true;
  return await countNonfinite(x).item() === 0;
}

/** The layers that `options` name, checked. */
function layersToPack(model: Module, options: QuantizeOptions): [string, Linear | Conv1D][] {
  const { targets, skip } = options;
  const own = new Set(model.stateDict().values()); // without those of adapters
  const heads = headsOf(model);
  const linear = model.namedModules().filter((entry): entry is [string, Linear | Conv1D] =>
    isLinear(entry[1]) && own.has(entry[1].weight)
  );
  const layers = linear.filter(([path, layer]) => {
    const named = targets ? path.search(targets) >= 0 : !heads.has(layer);
    return named && !(skip && path.search(skip) >= 0);
  });
  if (layers.length === 0) {
    throw new Error(
      `quantize: no layer is named; there is ${linear.map(([path]) => path).join(", ") || "none"}`,
    );
  }
  const tied = tiedParameters(model);
  for (const [path, layer] of layers) {
    if (layer.weight instanceof QuantizedParameter) {
      throw new Error(
        `quantize: ${path} is held in ${layer.weight.matrix.format} already; call dequantize() first`,
      );
    }
    if (tied.has(layer.weight)) {
      throw new Error(`quantize: ${path} shares its weight with another module; skip it`);
    }
    try {
      QuantizedMatrix.blockOf([layer.outFeatures, layer.inFeatures], options);
    } catch (error) {
      throw new RangeError(`${(error as Error).message}, the sizes of ${path}; skip it`, {
        cause: error,
      });
    }
  }
  return layers;
}

/** The linear layers of models that do not stand below the base. */
function headsOf(model: Module): Set<Module> {
  const heads = new Set<Module>();
  for (const module of model.modules()) {
    const { pretrained } = module.constructor as { pretrained?: PretrainedInfo };
    if (!pretrained || !Object.hasOwn(module, pretrained.base)) continue;
    for (const [path, inner] of module.namedModules()) {
      if (isLinear(inner) && !path.startsWith(`${pretrained.base}.`)) heads.add(inner);
    }
  }
  return heads;
}

/**
 * Layers with LoRA adapters beside them. Weight and bias are those of the layer whose place they take,
 * under the same keys: checkpoints of the base load unchanged.
 *
 * @module
 */

import { embedding, noGrad, type Tensor, type Variable } from "../core/mod.ts";
import { Conv1D, Embedding, layerProduct, Linear, type Module } from "../nn/mod.ts";
import {
  as,
  type LoraAdapter,
  type LoraEmbeddingAdapter,
  type LoraPair,
  type PairBase,
} from "./pair.ts";
import { BASE, byRows } from "./rows.ts";

/** What can be switched: a layer with adapters, or the parameters that adapters have of their own. */
export interface Adapted {
  /** Attached adapters by name. */
  readonly adapters: Map<string, Module>;
  /** Names of those that take part, in order. */
  active: readonly string[];
  /** For each row of the batch the name of its adapter; null where all rows use the active ones. */
  rows: readonly string[] | null;
}

/** The weights of a layer with adapters in them, kept beside its own. */
export interface Merged {
  /** Names of the adapters that are in. */
  readonly names: readonly string[];
  /** W + ΔW, as the layer holds its weight; packed where W is. */
  readonly weight: Variable;
  /** What is added to the bias, or null. */
  readonly bias: Variable | null;
}

/** A layer with LoRA adapters. */
export type LoraLayer = LoraLinear | LoraConv1D | LoraEmbedding;

/** A layer that can have LoRA adapters. */
export type LoraBase = Linear | Conv1D | Embedding;

/** A linear layer with adapters. */
export class LoraLinear extends Linear implements Adapted, PairBase {
  /** Attached adapters by name. */
  readonly adapters: Map<string, LoraAdapter> = new Map();
  /** Names of those that take part, in order. */
  active: readonly string[] = [];
  /** See {@linkcode Adapted}. */
  rows: readonly string[] | null = null;
  /** Adapters that are merged in; see `merge`. */
  merged: Merged | null = null;

  /** Takes over weight and bias of `base`. */
  constructor(base: Linear) {
    super(base.inFeatures, base.outFeatures, { weight: base.weight, bias: base.bias ?? false });
    this.training = base.training;
  }

  /** [..., in] -> [..., out]: the layer's output and what its adapters add. */
  override forward(x: Tensor): Tensor {
    return forwardAdapted(this, x, () => super.forward(x), (weight) => {
      const y = layerProduct(x, weight);
      return this.bias ? y.add(this.bias) : y;
    });
  }

  /** W, [out, in] */
  matrix(): Tensor {
    return this.weight;
  }
  /** [..., in] -> [..., out], without the bias. */
  product(x: Tensor): Tensor {
    return layerProduct(as(x, this.weight.dtype), this.weight);
  }
  /** A plain layer with the same weight and bias, or others. */
  plain(weight: Linear["weight"] = this.weight, bias: Linear["bias"] = this.bias): Linear {
    const { inFeatures, outFeatures } = this;
    const layer = new Linear(inFeatures, outFeatures, { weight, bias: bias ?? false });
    layer.training = this.training;
    return layer;
  }
}

/** A linear layer of GPT-2 with adapters: its weight is [in, out], A and B are as everywhere. */
export class LoraConv1D extends Conv1D implements Adapted, PairBase {
  /** Attached adapters by name. */
  readonly adapters: Map<string, LoraAdapter> = new Map();
  /** Names of those that take part, in order. */
  active: readonly string[] = [];
  /** See {@linkcode Adapted}. */
  rows: readonly string[] | null = null;
  /** Adapters that are merged in; see `merge`. */
  merged: Merged | null = null;

  /** Takes over weight and bias of `base`. */
  constructor(base: Conv1D) {
    super(base.inFeatures, base.outFeatures, { weight: base.weight, bias: base.bias });
    this.training = base.training;
  }

  /** [..., in] -> [..., out]: the layer's output and what its adapters add. */
  override forward(x: Tensor): Tensor {
    return forwardAdapted(this, x, () => super.forward(x), (weight) => {
      return layerProduct(x, weight, true).add(this.bias);
    });
  }

  /** W, [out, in] */
  matrix(): Tensor {
    return this.weight.transpose();
  }
  /** [..., in] -> [..., out], without the bias. */
  product(x: Tensor): Tensor {
    return layerProduct(as(x, this.weight.dtype), this.weight, true);
  }
  /** A plain layer with the same weight and bias, or others. */
  plain(weight: Conv1D["weight"] = this.weight, bias: Conv1D["bias"] = this.bias): Conv1D {
    const layer = new Conv1D(this.inFeatures, this.outFeatures, { weight, bias });
    layer.training = this.training;
    return layer;
  }
}

/** An embedding with adapters: W is its table transposed, [D, V]. */
export class LoraEmbedding extends Embedding implements Adapted, PairBase {
  /** Attached adapters by name. */
  readonly adapters: Map<string, LoraEmbeddingAdapter> = new Map();
  /** Names of those that take part, in order. */
  active: readonly string[] = [];
  /** See {@linkcode Adapted}. */
  rows: readonly string[] | null = null;
  /** Adapters that are merged in; see `merge`. */
  merged: Merged | null = null;
  /** An embedding has none. */
  declare readonly bias: undefined;

  /** Takes over the table of `base`. */
  constructor(base: Embedding) {
    const [count, size] = base.weight.shape;
    super(count, size, base.weight);
    this.training = base.training;
  }

  /** i32 [...] -> [..., D]: the vectors and what the adapters add. */
  override forward(ids: Tensor): Tensor {
    return forwardAdapted(
      this,
      ids,
      () => super.forward(ids),
      (weight) => embedding(weight, ids),
    );
  }

  /** W, [D, V] */
  matrix(): Tensor {
    return this.weight.transpose();
  }
  /** i32 [...] -> [..., D] */
  product(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
  /** A plain layer with the same table, or another. */
  plain(weight: Embedding["weight"] = this.weight): Embedding {
    const [count, size] = weight.shape;
    const layer = new Embedding(count, size, weight);
    layer.training = this.training;
    return layer;
  }
}

/** Whether a module is a layer with LoRA adapters. */
export function isLoraLayer(module: Module): module is LoraLayer {
  return module instanceof LoraLinear || module instanceof LoraConv1D ||
    module instanceof LoraEmbedding;
}

/** A layer with room for adapters that takes over what `base` holds. */
export function adaptedLayer(base: LoraBase): LoraLayer {
  if (isLoraLayer(base)) return base;
  if (base instanceof Linear) return new LoraLinear(base);
  return base instanceof Conv1D ? new LoraConv1D(base) : new LoraEmbedding(base);
}

/** Sizes of a layer, [out, in] of its W. */
export function sizesOf(layer: LoraBase): { inFeatures: number; outFeatures: number } {
  if (layer instanceof Embedding) {
    const [inFeatures, outFeatures] = layer.weight.shape;
    return { inFeatures, outFeatures };
  }
  return { inFeatures: layer.inFeatures, outFeatures: layer.outFeatures };
}

/** ΔW of the named adapters together, as [out, in]; null where the layer has none of them. */
export function deltaOf(layer: LoraLayer, names: readonly string[]): Tensor | null {
  const deltas = pairs(layer, names).map((pair) => pair.delta(layer));
  return deltas.length === 0 ? null : deltas.reduce((sum, delta) => sum.add(delta));
}

/** W + ΔW of the named adapters as the layer holds its weight, and what is added to its bias. */
export function mergedValues(
  layer: LoraLayer,
  names: readonly string[],
): { weight: Tensor; bias: Tensor | null } | null {
  return noGrad(() => {
    const delta = deltaOf(layer, names);
    if (!delta) return null;
    const biases = pairs(layer, names).flatMap((pair) => pair.biasDelta() ?? []);
    const turned = layer instanceof LoraLinear ? delta : delta.transpose();
    return {
      weight: as(as(layer.weight, delta.dtype).add(turned), layer.weight.dtype),
      bias: biases.length === 0 ? null : biases.reduce((sum, bias) => sum.add(bias)),
    };
  });
}

function pairs(layer: LoraLayer, names: readonly string[]): LoraPair[] {
  const adapters: ReadonlyMap<string, LoraPair> = layer.adapters;
  return names.flatMap((name) => adapters.get(name) ?? []);
}

/**
 * The output of `layer` for `x`: by `plain`, its own forward, with what the adapters add, or by `merged`
 * from their merged weight.
 */
function forwardAdapted(
  layer: LoraLayer,
  x: Tensor,
  plain: () => Tensor,
  merged: (weight: Tensor) => Tensor,
): Tensor {
  const { rows, active } = layer;
  if (rows) {
    return byRows(x, rows, (name, part) => {
      const before = [layer.active, layer.rows] as const;
      layer.active = name === BASE || !layer.adapters.has(name) ? [] : [name];
      layer.rows = null;
      try {
        return layer.forward(part);
      } finally {
        [layer.active, layer.rows] = before;
      }
    });
  }
  if (active.length === 0) return plain();
  const in_ = layer.merged;
  if (in_ && in_.names.join() === active.join()) {
    const y = merged(in_.weight);
    return in_.bias ? y.add(in_.bias) : y;
  }
  let y = plain();
  const adapters = pairs(layer, active);
  // W x without the bias, for DoRA alone.
  const wx = layer.bias && adapters.some((pair) => pair.lora_magnitude_vector)
    ? y.sub(layer.bias)
    : y;
  for (const pair of adapters) y = y.add(pair.forward(x, wx, layer));
  return y;
}

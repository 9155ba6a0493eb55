/**
 * Adapters merged into the weights: the base's speed, and back again.
 *
 * @module
 */

import { noGrad, read, type Tensor, Variable } from "../core/mod.ts";
import { type Module, Parameter } from "../nn/mod.ts";
import { LoraConv1D, LoraEmbedding, type LoraLayer, mergedValues } from "./layers.ts";
import { takePlace, unload } from "./lora.ts";
import { baseParameter, ownOf, setParameter } from "./own.ts";
import { promptsOf } from "./prompt/holder.ts";
import { adapterNames, adapterStatus, loraLayers, setActive } from "./switch.ts";
import { baseModules } from "./target.ts";

/** Options of {@linkcode merge} and {@linkcode mergeAndUnload}. */
export interface MergeOptions {
  /** Names of the adapters to merge, which become the active ones. Default: those that are active. */
  readonly adapters?: readonly string[];
  /** Told that there is nothing to do. Default `console.warn`. */
  readonly warn?: (message: string) => void;
}

/**
 * Computes W + ΔW of the adapters once, so that the model runs at the base's speed while they are the
 * active ones. The base's weights stay beside the merged ones, which costs their memory again:
 * {@linkcode unmerge} is exact, and `withoutAdapters` and `setActive` work as before. A merged model
 * that is merged again is left as it is, with a warning.
 *
 * Throws an `Error` that names the layers whose merged weight is not finite; then the model is as it was.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { adapterStatus, inject, merge, unmerge } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * await merge(inject(model, { r: 4 }));
 * console.log(adapterStatus(model).merged); // ["default"]
 * unmerge(model);
 * ```
 */
export async function merge<M extends Module>(model: M, options: MergeOptions = {}): Promise<M> {
  const { adapters, warn = console.warn } = options;
  const status = adapterStatus(model);
  const names = adapters ?? status.active; // a soft prompt among them stays as it is
  if (status.merged.length > 0) {
    warn(`merge: ${status.merged.join(", ")} is merged already; call unmerge() first`);
    return model;
  }
  if (names.length === 0) {
    warn("merge: no adapter is active; name those to merge");
    return model;
  }
  const before = status.active;
  setActive(model, ...names);
  const computed: [LoraLayer, { weight: Variable; bias: Variable | null }][] = [];
  try {
    const checks: [string, Tensor][] = [];
    for (const [path, layer] of loraLayers(model)) {
      const values = mergedValues(layer, layer.active);
      if (!values) continue;
      const weight = new Variable(values.weight);
      const bias = values.bias && new Variable(values.bias);
      computed.push([layer, { weight, bias }]);
      checks.push([path, badCount(weight)]);
      if (bias) checks.push([path, badCount(bias)]);
    }
    await refuse(checks);
  } catch (error) {
    setActive(model, ...before);
    throw error;
  }
  for (const [layer, values] of computed) layer.merged = { names: [...layer.active], ...values };
  return model;
}

/** Gives the memory of merged weights back; what the model computes stays. */
export function unmerge<M extends Module>(model: M): M {
  for (const layer of loraLayers(model).values()) layer.merged = null;
  return model;
}

/**
 * Adds the active adapters to the weights and takes all adapters away: the model computes what it did
 * before, at the base's speed. Weights are overwritten; one that is tied to another layer's is copied
 * first. Own copies of modules and biases take the place of the base's.
 *
 * Throws an `Error` that names the layers whose merged weight would not be finite; then the model is as
 * it was.
 */
export async function mergeAndUnload<M extends Module>(
  model: M,
  options: MergeOptions = {},
): Promise<M> {
  const before = adapterStatus(model).active;
  const names = options.adapters ?? before;
  const prompt = names.find((name) => promptsOf(model)?.adapters.has(name));
  if (prompt !== undefined) {
    throw new Error(
      `mergeAndUnload: the soft prompt "${prompt}" is active, which no weight can hold; ` +
        "switch it off with setActive(), or take all adapters away with unload()",
    );
  }
  setActive(model, ...names);
  try {
    const checks: [string, Tensor][] = [];
    for (const [path, layer] of loraLayers(model)) {
      const values = mergedValues(layer, layer.active);
      if (values) checks.push([path, badCount(values.weight)]);
      if (values?.bias) checks.push([path, badCount(values.bias)]);
    }
    await refuse(checks);
  } catch (error) {
    setActive(model, ...before);
    throw error;
  }
  const holders = new Map<Parameter, number>();
  for (const module of model.modules()) {
    for (const value of Object.values(module)) {
      if (value instanceof Parameter) holders.set(value, (holders.get(value) ?? 0) + 1);
    }
  }
  const changed = (parameter: Parameter, value: Tensor): Parameter => {
    if ((holders.get(parameter) ?? 0) <= 1) {
      parameter.assign(value);
      return parameter;
    }
    return new Parameter(value, { requiresGrad: parameter.requiresGrad });
  };
  noGrad(() => {
    // Biases first: a merged bias is added to the adapter's own.
    for (const [, module] of baseModules(model)) {
      const own = ownOf(module);
      const values = names.map((name) => own?.adapters.get(name)).find((v) => v)?.values;
      for (const [path, value] of values ?? []) {
        setParameter(module, path, changed(baseParameter(module, path), value));
      }
    }
    for (const [path, layer] of loraLayers(model)) {
      const values = mergedValues(layer, layer.active);
      if (values) takePlace(model, path, layer, mergedLayer(layer, values, changed));
    }
  });
  return adapterNames(model).length === 0 ? model : unload(model);
}

function mergedLayer(
  layer: LoraLayer,
  values: { weight: Tensor; bias: Tensor | null },
  changed: (parameter: Parameter, value: Tensor) => Parameter,
): Module {
  const weight = changed(layer.weight, values.weight);
  if (layer instanceof LoraEmbedding) return layer.plain(weight);
  if (layer instanceof LoraConv1D) {
    const { bias } = layer;
    return layer.plain(weight, values.bias ? changed(bias, bias.add(values.bias)) : bias);
  }
  const { bias } = layer;
  if (!values.bias) return layer.plain(weight, bias);
  return layer.plain(
    weight,
    bias
      ? changed(bias, bias.add(values.bias))
      : new Parameter(values.bias, { requiresGrad: false }),
  );
}

/** How many elements are not finite. */
function badCount(x: Tensor): Tensor {
  return noGrad(() => x.isnan().or(x.abs().gt(3.4028234e38)).to("f32").sum());
}

async function refuse(checks: readonly [string, Tensor][]): Promise<void> {
  if (checks.length === 0) return;
  const counts = await read(...checks.map(([, count]) => count));
  const bad = new Set(checks.flatMap(([path], i) => counts[i][0] > 0 ? [path] : []));
  if (bad.size > 0) {
    throw new Error(
      `merge: the merged weight of ${[...bad].join(", ")} is not finite; check the adapter's ` +
        "training, or load another",
    );
  }
}

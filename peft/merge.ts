/**
 * Adapters merged into the weights: the base's speed, and back again.
 *
 * @module
 */

import {
  countNonfinite,
  noGrad,
  type QuantizedFormat,
  read,
  type Tensor,
  Variable,
} from "../core/mod.ts";
import { type Module, Parameter, QuantizedParameter, tiedParameters } from "../nn/mod.ts";
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
  /** Told that there is nothing to do, or what rounding cost. Default `console.warn`. */
  readonly warn?: (message: string) => void;
  /** Told what rounding cost in each layer whose weight is packed, in place of `warn`. */
  readonly rounded?: (layers: readonly MergeRounding[]) => void;
}

/** What was lost where a merged weight was packed again, since that of the base is packed. */
export interface MergeRounding {
  /** Path of the layer. */
  readonly path: string;
  /** What the weight is packed in. */
  readonly format: QuantizedFormat;
  /** ‖rounded - merged‖ / ‖merged‖, of the weights. */
  readonly weight: number;
  /** ‖rounded - merged‖ / ‖ΔW‖: from 1 on, rounding hides what the adapter adds. */
  readonly delta: number;
}

/**
 * Computes W + ΔW of the adapters once, so that the model runs at the base's speed while they are the
 * active ones. The base's weights stay beside the merged ones, which costs their memory again:
 * {@linkcode unmerge} is exact, and `withoutAdapters` and `setActive` work as before. A merged model
 * that is merged again is left as it is, with a warning.
 *
 * Over a packed weight the sum is packed again, so that it costs no more than the base; what rounding
 * loses is told. To lose nothing, make the base floats first: `dequantize(model)`.
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
    const checks: Check[] = [];
    for (const [path, layer] of loraLayers(model)) {
      const values = mergedValues(layer, layer.active);
      if (!values) continue;
      checks.push(checkOf(path, layer, values));
      const weight = heldAs(layer.weight, values.weight);
      computed.push([layer, { weight, bias: values.bias && new Variable(values.bias) }]);
    }
    await refuse(checks, options);
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
 * first. Own copies of modules and biases take the place of the base's. A packed weight is packed again,
 * as {@linkcode merge} does it: to lose nothing, call `dequantize(model)` first.
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
    const checks: Check[] = [];
    for (const [path, layer] of loraLayers(model)) {
      const values = mergedValues(layer, layer.active);
      if (values) checks.push(checkOf(path, layer, values));
    }
    await refuse(checks, options);
  } catch (error) {
    setActive(model, ...before);
    throw error;
  }
  const tied = tiedParameters(model);
  const changed = (parameter: Parameter, value: Tensor): Parameter => {
    if (!tied.has(parameter)) {
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

/** A variable with `value` in the form in which `weight` is held. */
function heldAs(weight: Variable, value: Tensor): Variable {
  if (!(weight instanceof QuantizedParameter)) return new Variable(value);
  const { matrix: { format, block }, turned } = weight;
  return QuantizedParameter.from(value, { format, blockSize: block, turned });
}

/** What is computed of a layer's merged values before they are used. */
interface Check {
  readonly path: string;
  /** How many of them are not finite. */
  readonly bad: Tensor;
  /** Of a packed weight: Σ of squares of the rounding, of the merged weight, and of ΔW. */
  readonly rounding: { readonly format: QuantizedFormat; readonly sums: Tensor[] } | null;
}

function checkOf(
  path: string,
  { weight }: LoraLayer,
  values: { weight: Tensor; bias: Tensor | null },
): Check {
  return noGrad(() => ({
    path,
    bad: [values.weight, ...values.bias ? [values.bias] : []].map(countNonfinite)
      .reduce((sum, count) => sum.add(count)),
    rounding: weight instanceof QuantizedParameter
      ? {
        format: weight.matrix.format,
        sums: [
          weight.round(values.weight).sub(values.weight),
          values.weight,
          values.weight.sub(weight),
        ].map((x) => x.square().sum()),
      }
      : null,
  }));
}

/** Throws where merged values are not finite; else tells what rounding costs. */
async function refuse(checks: readonly Check[], options: MergeOptions): Promise<void> {
  if (checks.length === 0) return;
  const counts = await read(...checks.map(({ bad }) => bad));
  const bad = checks.filter((_, i) => counts[i][0] > 0).map(({ path }) => path);
  if (bad.length > 0) {
    throw new Error(
      `merge: the merged weight of ${bad.join(", ")} is not finite; check the adapter's ` +
        "training, or load another",
    );
  }
  const roundings: MergeRounding[] = [];
  for (const { path, rounding } of checks) {
    if (!rounding) continue;
    const [lost, merged, delta] = (await read(...rounding.sums)).map(([sum]) => Math.sqrt(sum));
    roundings.push({
      path,
      format: rounding.format,
      weight: merged === 0 ? 0 : lost / merged,
      delta: delta === 0 ? 0 : lost / delta,
    });
  }
  if (roundings.length === 0) return;
  if (options.rounded) return options.rounded(roundings);
  const { warn = console.warn } = options;
  warn(describe(roundings));
}

function describe(roundings: readonly MergeRounding[]): string {
  const percent = (share: number): string => `${(100 * share).toPrecision(2)} %`;
  const mean = (of: "weight" | "delta"): string =>
    percent(roundings.reduce((sum, r) => sum + r[of], 0) / roundings.length);
  const worst = roundings.reduce((a, b) => b.delta > a.delta ? b : a);
  const formats = [...new Set(roundings.map(({ format }) => format))].join(" and ");
  return `merge: ${roundings.length} merged weights were rounded to ${formats} again, which changes ` +
    `them by ${mean("weight")}, or ${mean("delta")} of what the adapters add (at most ` +
    `${percent(worst.delta)}, ${worst.path}); merge after dequantize(model) to lose nothing`;
}

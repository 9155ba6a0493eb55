/**
 * Several adapters combined into a new one, with weights. Everything is defined on what an adapter
 * changes (ΔW = scale · B A, not A and B apart): one adapter at weight 1 gives itself.
 *
 * @module
 */

import { noGrad, type Tensor, tensor } from "../core/mod.ts";
import type { Module, Parameter } from "../nn/mod.ts";
import { type Arithmetic, combined, type MajoritySign } from "./arithmetic.ts";
import type { ResolvedLoraConfig } from "./config.ts";
import { cutMatrix, cutProduct, type Factors, sideBySide, type Term } from "./factors.ts";
import type { LoraLayer } from "./layers.ts";
import { rowMajor } from "./linalg.ts";
import { attach } from "./lora.ts";
import { baseParameter, ownOf } from "./own.ts";
import type { LoraPair } from "./pair.ts";
import { promptsOf } from "./prompt/holder.ts";
import { adapterNames, adapterParameters, loraLayers } from "./switch.ts";
import { baseModules, findSaved, type Target } from "./target.ts";

/**
 * How adapters are combined:
 *
 * - `cat`: Σ wᵢ ΔWᵢ exactly; the ranks add up.
 * - `linear`: the same, cut to the largest rank among the adapters; `svd`: cut to `rank`.
 * - `magnitude_prune`: of each ΔWᵢ only the largest elements, `density` of them.
 * - `dare_linear`: of each ΔWᵢ a random share `density`, scaled by 1 / density (Yu et al. 2024).
 * - `ties`: pruned by magnitude; of each element those that have the majority's sign are averaged (Yadav
 *   et al. 2023). `dare_ties`: the same, pruned at random.
 *
 * PEFT's names that end in `_svd` are the same as those without: it means by the latter A and B, each
 * pruned and summed by itself, whose product is another.
 */
export type CombinationType = "cat" | "svd" | Arithmetic | `${Exclude<Arithmetic, "linear">}_svd`;

/** Options of {@linkcode addWeightedAdapter}. */
export interface CombinationOptions {
  /** Name of the new adapter. */
  readonly name: string;
  /** Default "cat", which loses nothing. */
  readonly type?: CombinationType;
  /** Rank of the new adapter, where it is cut. Default: the largest among the adapters. */
  readonly rank?: number;
  /** Share of the elements that pruning keeps, in (0, 1]. Default 1. */
  readonly density?: number;
  /** What `ties` takes for the majority's sign: that of the sum, or of most elements. Default "total". */
  readonly majoritySign?: MajoritySign;
}

/**
 * Adds an adapter that is the weighted combination of others: it is attached, not active, and frozen.
 * What adapters have beside A and B is combined by what it changes, too: DoRA's magnitudes by their
 * distance from the lengths of the base's rows, biases and copies of modules by theirs from the base's.
 * (PEFT refuses the copies, and starts the magnitudes afresh.) All but `cat`, `linear` and `svd` decompose
 * each layer's whole ΔW on the host, which takes a while for large layers.
 *
 * Throws an `Error` where there is no LoRA adapter of a name, the new name is taken, there are not as many
 * weights as adapters, only some of the adapters use DoRA, or one has a copy of a module that another
 * adapts.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { addAdapter, addWeightedAdapter, setActive } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * addAdapter(model, { r: 4 }, { name: "poems" });
 * addAdapter(model, { r: 2 }, { name: "letters" });
 * await addWeightedAdapter(model, ["poems", "letters"], [0.7, 0.3], { name: "both" });
 * setActive(model, "both");
 * ```
 */
export async function addWeightedAdapter<M extends Module>(
  model: M,
  adapters: readonly string[],
  weights: readonly number[],
  options: CombinationOptions,
): Promise<M> {
  check(model, adapters, weights, options);
  const how = howOf(options);
  const results: Result[] = [];
  for (const [path, layer] of loraLayers(model)) {
    const attached: ReadonlyMap<string, LoraPair> = layer.adapters;
    const terms = adapters.flatMap((adapter, i) => {
      const pair = attached.get(adapter);
      return pair ? [{ pair, weight: weights[i] }] : [];
    });
    if (terms.length > 0) results.push(await combinedLayer(path, layer, terms, how));
  }
  if (results.length === 0) {
    throw new Error(`addWeightedAdapter: ${adapters.join(", ")} adapt no layer`);
  }
  const config = configOf(model, adapters, results);
  const copies = await combinedCopies(model, adapters, weights, how);
  attach(model, results.map(({ target }) => target), config, options.name);
  write(model, options.name, results, copies);
  for (const p of adapterParameters(model, options.name)) p.requiresGrad = false;
  return model;
}

/** How to combine; `type` null: exactly, from the factors. */
interface How {
  readonly type: Arithmetic;
  /** Whether ΔW is the sum of the factors' products, rather than made element by element. */
  readonly byFactors: boolean;
  /** The rank to cut to; null: to none, undefined: the largest among the adapters. */
  readonly rank: number | null | undefined;
  readonly density: number;
  readonly majority: MajoritySign;
}

/** A layer's combination. */
interface Result {
  readonly target: Target;
  /** What the configuration is taken from. */
  readonly config: ResolvedLoraConfig;
  readonly factors: Factors;
  /** DoRA's magnitudes, [out], or null. */
  readonly magnitude: Float64Array | null;
  /** B's bias, [out], or null. */
  readonly bias: Float64Array | null;
}

function howOf(
  { type = "cat", rank, density = 1, majoritySign = "total" }: CombinationOptions,
): How {
  const plain = type.replace(/_svd$/, "");
  const byFactors = ["cat", "svd", "linear"].includes(plain);
  return {
    type: byFactors ? "linear" : plain as Arithmetic,
    byFactors,
    rank: plain === "cat" ? null : rank,
    density,
    majority: majoritySign,
  };
}

async function combinedLayer(
  path: string,
  layer: LoraLayer,
  terms: readonly Term[],
  how: How,
): Promise<Result> {
  const pairs = terms.map(({ pair }) => pair), weights = terms.map(({ weight }) => weight);
  const together = (changes: Float64Array[]): Promise<Float64Array> =>
    combined(changes, weights, how.type, how.density, how.majority);
  const [out, inner] = [pairs[0].b.shape[0], pairs[0].a.shape[1]];
  const rank = how.rank ?? Math.max(...pairs.map((pair) => pair.a.shape[0]));
  const limit = Math.min(rank, out, inner);
  let factors: Factors;
  if (how.byFactors) {
    factors = await sideBySide(terms);
    if (how.rank !== null) factors = cutProduct(factors, limit);
  } else {
    const deltas = await hosted(pairs.map((pair) => pair.update()));
    factors = cutMatrix(await together(deltas), out, inner, limit);
  }
  const { r } = factors;
  return {
    target: { path, layer, r, alpha: r },
    config: pairs[0].config,
    factors,
    magnitude: pairs[0].lora_magnitude_vector
      ? await combinedMagnitude(layer, pairs, together)
      : null,
    bias: pairs.some((pair) => pair.biasDelta())
      ? await together(
        await hosted(pairs.map((pair) => pair.biasDelta() ?? pair.b.sum(1).mul(0))),
      )
      : null,
  };
}

/** The lengths of the base's rows, and the combination of how far each adapter's are from them. */
async function combinedMagnitude(
  layer: LoraLayer,
  pairs: readonly LoraPair[],
  together: (changes: Float64Array[]) => Promise<Float64Array>,
): Promise<Float64Array> {
  const [lengths, ...magnitudes] = await hosted([
    noGrad(() => layer.matrix().to("f32").square().sum(1).sqrt()),
    ...pairs.map((pair) => pair.lora_magnitude_vector!),
  ]);
  const changes = magnitudes.map((values) => values.map((x, i) => x - lengths[i]));
  return (await together(changes)).map((x, i) => x + lengths[i]);
}

/** The new adapter's copies of parameters, by the parameters' paths in the model. */
async function combinedCopies(
  model: Module,
  adapters: readonly string[],
  weights: readonly number[],
  { type, density, majority }: How,
): Promise<Map<string, Float64Array>> {
  const copies = adapters.map((name) => copiesOf(model, name));
  const result = new Map<string, Float64Array>();
  for (const path of new Set(copies.flatMap((own) => [...own.keys()]))) {
    const having = adapters.flatMap((_, i) => copies[i].has(path) ? [i] : []);
    const [base, ...values] = await hosted([
      copies[having[0]].get(path)!.base,
      ...having.map((i) => copies[i].get(path)!.value),
    ]);
    const changes = values.map((x) => x.map((y, j) => y - base[j]));
    const own = having.map((i) => weights[i]);
    const sum = await combined(changes, own, type, density, majority);
    result.set(path, sum.map((x, j) => x + base[j]));
  }
  return result;
}

/** An adapter's copies of parameters, and the base's, by their paths in the model. */
function copiesOf(
  model: Module,
  name: string,
): Map<string, { readonly base: Parameter; readonly value: Parameter }> {
  return new Map(
    baseModules(model).flatMap(([path, module]) =>
      [...ownOf(module)?.adapters.get(name)?.values ?? []].map(([inner, value]) =>
        [`${path}.${inner}`, { base: baseParameter(module, inner), value }] as const
      )
    ),
  );
}

/** The configuration of the combination: what has to be attached, and what a file says of it. */
function configOf(
  model: Module,
  adapters: readonly string[],
  results: readonly Result[],
): ResolvedLoraConfig {
  const targets = results.map(({ target }) => target);
  const configs = configsOf(model, adapters);
  const ranks = Object.fromEntries(targets.map(({ path, r }) => [path, r]));
  const r = Math.max(...targets.map((target) => target.r));
  const uneven = targets.some((target) => target.r !== r);
  const saved = [...new Set(configs.flatMap((config) => config.modules_to_save ?? []))];
  const biases = configs.map(({ bias }) => bias);
  const copied = findSaved(model, { modules_to_save: saved }).map(([path]) => `${path}.`);
  const both = targets.find(({ path }) => copied.some((copy) => `${path}.`.startsWith(copy)));
  if (both) {
    throw new TypeError(
      `addWeightedAdapter: one of ${
        adapters.join(", ")
      } adapts ${both.path}, another has a copy of it ` +
        "(modules_to_save), which cannot be combined",
    );
  }
  return {
    ...results[0].config,
    r,
    lora_alpha: r, // scale 1
    rank_pattern: uneven ? ranks : {},
    alpha_pattern: uneven ? ranks : {},
    use_rslora: false,
    init_lora_weights: true,
    eva_config: null,
    lora_bias: results.some(({ bias }) => bias),
    bias: biases.includes("all") ? "all" : biases.includes("lora_only") ? "lora_only" : "none",
    modules_to_save: saved.length > 0 ? saved : null,
    target_modules: targets.map(({ path }) => path),
    exclude_modules: null,
    layers_to_transform: null,
    layers_pattern: null,
  };
}

/** What each of the adapters was made from. */
function configsOf(model: Module, adapters: readonly string[]): ResolvedLoraConfig[] {
  const layers = [...loraLayers(model).values()];
  return adapters.flatMap((name) =>
    layers.flatMap((layer) => layer.adapters.get(name)?.config ?? []).slice(0, 1)
  );
}

function write(
  model: Module,
  name: string,
  results: readonly Result[],
  copies: ReadonlyMap<string, Float64Array>,
): void {
  const assign = (parameter: Parameter, values: ArrayLike<number>): void => {
    parameter.assign(tensor(Float32Array.from(values), { shape: parameter.shape }));
  };
  const layers = loraLayers(model);
  for (const { target, factors: { a, b, r }, magnitude, bias } of results) {
    const pair: LoraPair = layers.get(target.path)!.adapters.get(name)!;
    assign(pair.a, rowMajor(a, r));
    assign(pair.b, rowMajor(b, pair.b.shape[0]));
    if (magnitude) assign(pair.lora_magnitude_vector!, magnitude);
    const own = new Map(pair.parts()).get("lora_B.bias");
    if (own) assign(own, bias ?? new Float64Array(own.size));
  }
  for (const [path, { value }] of copiesOf(model, name)) {
    const values = copies.get(path); // a bias that no adapter had a copy of stays the base's
    if (values) assign(value, values);
  }
}

/** Values on the host, in double precision. */
async function hosted(tensors: readonly Tensor[]): Promise<Float64Array[]> {
  const found: Float64Array[] = [];
  for (const t of tensors) found.push(Float64Array.from(await t.data()));
  return found;
}

function check(
  model: Module,
  adapters: readonly string[],
  weights: readonly number[],
  { name, type = "cat", density = 1, rank }: CombinationOptions,
): void {
  const what = "addWeightedAdapter";
  const names = adapterNames(model);
  const unknown = adapters.filter((adapter) => !names.includes(adapter));
  if (unknown.length > 0 || adapters.length === 0) {
    throw new Error(
      `${what}: no adapter "${unknown[0] ?? ""}"; there is ${names.join(", ") || "none"}`,
    );
  }
  if (names.includes(name)) throw new Error(`${what}: there is an adapter "${name}" already`);
  if (weights.length !== adapters.length || !weights.every(Number.isFinite)) {
    throw new RangeError(
      `${what}: needs ${adapters.length} weights for ${adapters.join(", ")}, got [${weights}]`,
    );
  }
  if (!(density > 0 && density <= 1)) {
    throw new RangeError(`${what}: density must be in (0, 1], is ${density}`);
  }
  if (rank !== undefined && !(Number.isInteger(rank) && rank >= 1)) {
    throw new RangeError(`${what}: rank must be a whole number from 1 on, is ${rank}`);
  }
  const types = ["cat", "svd", "linear"].concat(
    ["magnitude_prune", "dare_linear", "ties", "dare_ties"].flatMap((t) => [t, `${t}_svd`]),
  );
  if (!types.includes(type)) {
    throw new RangeError(`${what}: type must be one of ${types.join(", ")}, is "${type}"`);
  }
  const prompt = adapters.find((adapter) => promptsOf(model)?.adapters.has(adapter));
  if (prompt !== undefined) {
    throw new TypeError(`${what}: "${prompt}" is a soft prompt, of which there is no combination`);
  }
  const dora = configsOf(model, adapters).map(({ use_dora }) => use_dora);
  if (new Set(dora).size > 1) {
    throw new TypeError(
      `${what}: ${adapters.filter((_, i) => dora[i]).join(", ")} uses DoRA, ` +
        `${adapters.filter((_, i) => !dora[i]).join(", ")} does not; merge one of them instead`,
    );
  }
}

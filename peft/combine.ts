/**
 * Several adapters combined into a new one, with weights. Everything is defined on ΔW = scale · B A, not
 * on A and B apart: one adapter at weight 1 gives itself.
 *
 * @module
 */

import { noGrad, tensor, uniform } from "../core/mod.ts";
import type { Module } from "../nn/mod.ts";
import type { ResolvedLoraConfig } from "./config.ts";
import type { LoraLayer } from "./layers.ts";
import {
  type Columns,
  columns,
  qr,
  rowMajor,
  type Svd,
  svd,
  topSvd,
  transposed,
} from "./linalg.ts";
import { attach } from "./lora.ts";
import { ownOf } from "./own.ts";
import type { LoraPair } from "./pair.ts";
import { adapterNames, adapterParameters, loraLayers } from "./switch.ts";
import { baseModules, type Target } from "./target.ts";

/**
 * How adapters are combined:
 *
 * - `cat`: Σ wᵢ ΔWᵢ exactly; the ranks add up.
 * - `linear`: the same, cut to the largest rank among the adapters; `svd`: cut to `rank`.
 * - `magnitude_prune`: of each ΔWᵢ only the largest elements, `density` of them.
 * - `dare_linear`: of each ΔWᵢ a random share `density`, scaled by 1 / density (Yu et al. 2024).
 * - `ties`: pruned by magnitude; where signs differ, the elements of the sign that weighs more are
 *   averaged (Yadav et al. 2023). `dare_ties`: the same, pruned at random.
 */
export type CombinationType =
  | "cat"
  | "linear"
  | "svd"
  | "ties"
  | "dare_linear"
  | "dare_ties"
  | "magnitude_prune";

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
}

/**
 * Adds an adapter that is the weighted combination of others: it is attached, not active, and frozen.
 * All but `cat`, `linear` and `svd` decompose each layer's whole ΔW on the host, which takes a while for
 * large layers.
 *
 * Throws an `Error` where there is no adapter of a name, the name is taken, there are not as many weights
 * as adapters, or an adapter is more than low-rank matrices (DoRA, bias, modules_to_save).
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
  const { name, type = "cat", rank, density = 1 } = options;
  check(model, adapters, weights, options);
  const targets: Target[] = [];
  const results: { a: Columns; b: Columns; r: number }[] = [];
  let config: ResolvedLoraConfig | null = null;
  for (const [path, layer] of loraLayers(model)) {
    const attached: ReadonlyMap<string, LoraPair> = layer.adapters;
    const terms = adapters.flatMap((adapter, i) => {
      const pair = attached.get(adapter);
      return pair ? [{ pair, weight: weights[i] }] : [];
    });
    if (terms.length === 0) continue;
    config ??= terms[0].pair.config;
    const largest = Math.max(...terms.map(({ pair }) => pair.a.shape[0]));
    const [out, inner] = layer.matrix().shape;
    const limit = Math.min(rank ?? largest, out, inner);
    const factors = type === "cat" || type === "linear" || type === "svd"
      ? await concatenated(terms, out, inner)
      : balanced(topSvd(await pruned(terms, layer, type, density), limit));
    const cutTo = type === "cat" ? factors.r : limit;
    const result = factors.r > cutTo ? cutProduct(factors, cutTo) : factors;
    results.push(result);
    targets.push({ path, layer, r: result.r, alpha: result.r });
  }
  if (!config) throw new Error(`addWeightedAdapter: ${adapters.join(", ")} adapt no layer`);
  const ranks = Object.fromEntries(targets.map(({ path, r }) => [path, r]));
  const r = Math.max(...targets.map((target) => target.r));
  const uneven = targets.some((target) => target.r !== r);
  attach(model, targets, {
    ...config,
    r,
    lora_alpha: r, // scale 1
    rank_pattern: uneven ? ranks : {},
    alpha_pattern: uneven ? ranks : {},
    use_rslora: false,
    init_lora_weights: true,
    target_modules: targets.map(({ path }) => path),
    exclude_modules: null,
    layers_to_transform: null,
    layers_pattern: null,
  }, name);
  const layers = loraLayers(model);
  targets.forEach(({ path }, i) => {
    const pair = layers.get(path)!.adapters.get(name)!;
    const { a, b, r } = results[i];
    pair.a.assign(tensor(rowMajor(a, r), { shape: pair.a.shape }));
    pair.b.assign(tensor(rowMajor(b, pair.b.shape[0]), { shape: pair.b.shape }));
  });
  for (const p of adapterParameters(model, name)) p.requiresGrad = false;
  return model;
}

function check(
  model: Module,
  adapters: readonly string[],
  weights: readonly number[],
  { name, density = 1, rank }: CombinationOptions,
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
  const attached = [...loraLayers(model).values()].flatMap((layer) =>
    adapters.flatMap((adapter) => layer.adapters.get(adapter) ?? [])
  );
  const more = attached.some((pair) => pair.lora_magnitude_vector || pair.biasDelta()) ||
    baseModules(model).some(([, module]) =>
      adapters.some((adapter) => ownOf(module)?.adapters.has(adapter))
    );
  if (more) {
    throw new TypeError(
      `${what}: combines low-rank matrices alone; one of ${
        adapters.join(", ")
      } uses DoRA, a bias or ` +
        "modules_to_save: merge it instead",
    );
  }
}

interface Term {
  readonly pair: LoraPair;
  readonly weight: number;
}

/** A [r, in] and B [out, r] as columns. */
interface Factors {
  readonly a: Columns;
  readonly b: Columns;
  readonly r: number;
}

/** The factors side by side: their product is Σ w ΔW. Starts that are taken off are among them. */
async function concatenated(
  terms: readonly Term[],
  out: number,
  inner: number,
): Promise<Factors> {
  const rows: Columns = [], b: Columns = [];
  for (const { pair, weight } of terms) {
    const parts = [
      { ...{ a: pair.a, b: pair.b }, sign: 1 },
      ...pair.start ? [{ ...pair.start, sign: -1 }] : [],
    ];
    for (const part of parts) {
      const r = part.a.shape[0];
      const factor = part.sign * weight * pair.scale;
      rows.push(...transposed(columns(await part.a.data(), r, inner), r));
      b.push(...columns(await part.b.data(), out, r).map((x) => x.map((y) => y * factor)));
    }
  }
  return { a: transposed(rows, inner), b, r: b.length };
}

/** The best product of a lower rank (Eckart and Young 1936), from the small factors alone. */
function cutProduct({ a, b, r }: Factors, rank: number): Factors {
  const left = qr(b), right = qr(transposed(a, r)); // B = Qb Rb, Aᵀ = Qa Ra
  const k = right.q.length;
  // Rb Raᵀ, whose singular values are those of B A.
  const core = multiply(left.r, transposed(right.r, k));
  const { u, s, v } = svd(core);
  return balanced({
    u: multiply(left.q, u).slice(0, rank),
    s: s.slice(0, rank),
    v: multiply(right.q, v).slice(0, rank),
  });
}

function multiply(m: Columns, n: Columns): Columns {
  const rows = m[0].length;
  return n.map((weights) => {
    const sum = new Float64Array(rows);
    m.forEach((column, k) => column.forEach((x, i) => sum[i] += x * weights[k]));
    return sum;
  });
}

/** U diag(s) Vᵀ as B A, with √s in each. */
function balanced({ u, s, v }: Svd): Factors {
  const weighted = (vectors: Columns): Columns =>
    vectors.map((x, i) => x.map((y) => y * Math.sqrt(s[i])));
  return { a: transposed(weighted(v), v[0].length), b: weighted(u), r: u.length };
}

/** The combination of pruned ΔW, [out, in]. */
async function pruned(
  terms: readonly Term[],
  layer: LoraLayer,
  type: CombinationType,
  density: number,
): Promise<Columns> {
  const [out, inner] = layer.matrix().shape;
  const deltas: Float64Array[] = [];
  for (const { pair } of terms) {
    const values = Float64Array.from(await noGrad(() => pair.delta(layer)).data());
    deltas.push(
      type.startsWith("dare") ? await thinned(values, density) : largestOf(values, density),
    );
  }
  const sum = new Float64Array(out * inner);
  const elect = type === "ties" || type === "dare_ties";
  for (let i = 0; i < sum.length; i++) {
    const total = elect ? deltas.reduce((t, delta, d) => t + delta[i] * terms[d].weight, 0) : 0;
    let count = 0;
    deltas.forEach((delta, d) => {
      const value = delta[i] * terms[d].weight;
      if (elect && (value === 0 || value > 0 !== total > 0)) return;
      sum[i] += value;
      count++;
    });
    if (elect && count > 1) sum[i] /= count;
  }
  return columns(sum, out, inner);
}

/** The `density` largest elements; the others are 0. */
function largestOf(values: Float64Array, density: number): Float64Array {
  if (density === 1) return values;
  const kept = Math.max(1, Math.floor(density * values.length));
  const order = Array.from(values.keys()).sort((i, j) => Math.abs(values[j]) - Math.abs(values[i]));
  const result = new Float64Array(values.length);
  for (const i of order.slice(0, kept)) result[i] = values[i];
  return result;
}

/** Each element with probability `density`, scaled so that the expectation stays. */
async function thinned(values: Float64Array, density: number): Promise<Float64Array> {
  if (density === 1) return values;
  const draws = await uniform([values.length]).data();
  return values.map((x, i) => draws[i] < density ? x / density : 0);
}

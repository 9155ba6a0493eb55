/**
 * EVA: A starts as the directions in which a layer's inputs vary most, and ranks go where they vary most
 * (Paischer et al. 2024).
 *
 * @module
 */

import { concatenate, noGrad, read, type Tensor, tensor, Variable, zeros } from "../core/mod.ts";
import type { Module } from "../nn/mod.ts";
import type { EvaConfig, ResolvedLoraConfig } from "./config.ts";
import { LoraEmbedding, type LoraLayer } from "./layers.ts";
import { type Columns, columns, topSvd } from "./linalg.ts";
import { attach, deleteAdapter } from "./lora.ts";
import { loraLayers, withoutAdapters } from "./switch.ts";
import type { Target } from "./target.ts";

/** Sizes up to which the whole decomposition is quick. */
const EXACT = 128;

/** What data say of an adapter. */
export interface EvaPlan {
  /** The configuration with the ranks that were found. */
  readonly config: ResolvedLoraConfig;
  /** A's rows by the layer's path; layers that get no rank are left out. */
  readonly rows: ReadonlyMap<string, Columns>;
}

/** The directions of one input, the most important first. */
interface Directions {
  readonly vectors: Columns;
  /** Singular values of the centred input. */
  readonly values: Float64Array;
  /** Share of the variance of each. */
  readonly shares: Float64Array;
}

/**
 * Runs `model`, its adapters left out, on `batches`, as its `loss` takes them, and finds where adapters of
 * `targets` start. The model is as it was afterwards.
 *
 * Throws a `TypeError` where the model has no loss or a target is no linear layer, and a `RangeError` that
 * names a layer that got too few tokens, or none that differ.
 */
export async function planEva(
  model: Module,
  targets: readonly Target[],
  config: ResolvedLoraConfig,
  batches: Iterable<object>,
  name: string,
): Promise<EvaPlan> {
  const eva = config.eva_config as Required<EvaConfig>;
  // Layers with room for adapters are asked for their output, the output layer too.
  attach(model, targets, { ...config, modules_to_save: null, bias: "none" }, name);
  const gathered = new Map<string, Gathered>();
  let most: ReadonlyMap<string, number>, directions: ReadonlyMap<string, Directions>;
  try {
    const layers = new Map(
      [...loraLayers(model)].filter(([, layer]) => layer.adapters.has(name)),
    );
    await gather(model, layers, eva, batches, gathered);
    most = mostRanks(targets, gathered, eva.rho);
    directions = await decomposed(targets, gathered, most);
  } finally {
    for (const one of gathered.values()) one.dispose();
    deleteAdapter(model, name);
  }

  // The budget of all ranks goes to the directions that explain most, whosever they are.
  const found = targets.flatMap((target) => {
    const { shares } = directions.get(target.path)!;
    return Array.from(shares.subarray(0, most.get(target.path)), (share) => ({ target, share }));
  });
  const budget = targets.reduce((sum, { r }) => sum + r, 0);
  const ranks = new Map<string, number>();
  for (const { target: { path } } of found.sort((a, b) => b.share - a.share).slice(0, budget)) {
    ranks.set(path, (ranks.get(path) ?? 0) + 1);
  }
  const rows = new Map<string, Columns>();
  for (const [path, rank] of ranks) {
    const { vectors, values } = directions.get(path)!;
    const picked = vectors.slice(0, rank);
    rows.set(
      path,
      eva.whiten ? picked.map((x, i) => x.map((y) => y / Math.sqrt(values[i]))) : picked,
    );
  }
  return { config: withRanks(config, targets, ranks), rows };
}

/** What a layer was given: how many rows, their sum, and the sum of their outer products. */
class Gathered {
  readonly count: Variable = new Variable(zeros([]));
  readonly sum: Variable;
  readonly products: Variable;

  constructor(size: number) {
    this.sum = new Variable(zeros([size]));
    this.products = new Variable(zeros([size, size]));
  }

  /** x [..., in], of which the rows count that `mask` [rows] has as 1; null: all do. */
  add(x: Tensor, mask: Tensor | null): void {
    const rows = x.reshape(-1, x.shape.at(-1)!).to("f32"); // [N, in]
    const weights = mask?.size === rows.shape[0] ? mask.unsqueeze(1) : null; // [N, 1]
    const kept = weights ? rows.mul(weights) : rows;
    this.count.assign(this.count.add(weights ? weights.sum() : rows.shape[0]));
    this.sum.assign(this.sum.add(kept.sum(0)));
    this.products.assign(this.products.add(kept.transpose().matmul(rows)));
  }

  dispose(): void {
    for (const variable of [this.count, this.sum, this.products]) variable.dispose();
  }
}

/** Runs the batches; layers that get the same input share what is gathered of it. */
async function gather(
  model: Module,
  layers: ReadonlyMap<string, LoraLayer>,
  eva: Required<EvaConfig>,
  batches: Iterable<object>,
  gathered: Map<string, Gathered>,
): Promise<void> {
  if (!("loss" in model) || typeof model.loss !== "function") {
    throw new TypeError(
      `LoRA: init_lora_weights "eva" runs the model by its loss, and ${model.constructor.name} has none`,
    );
  }
  const loss = (batch: object): Tensor => (model.loss as (batch: object) => Tensor)(batch);
  let mask: Tensor | null = null;
  const seen = new Map<Tensor, Gathered>(); // in this batch
  const see = (path: string, x: Tensor): void => {
    const own = gathered.get(path) ?? seen.get(x) ?? new Gathered(x.shape.at(-1)!);
    gathered.set(path, own);
    if (seen.get(x) === own) return;
    seen.set(x, own);
    own.add(x, mask);
  };
  const modes = model.modules().map((module) => [module, module.training] as const);
  const watched: { forward?: unknown }[] = [];
  try {
    for (const [path, layer] of layers) {
      if (layer instanceof LoraEmbedding) {
        throw new TypeError(`LoRA: init_lora_weights "eva" is for linear layers; ${path} is none`);
      }
      const forward = layer.forward;
      layer.forward = (x) => {
        see(path, x);
        return forward.call(layer, x);
      };
      watched.push(layer as { forward?: unknown });
    }
    model.eval(); // dropout has no part in it
    for (const batch of batches) {
      seen.clear();
      const result = noGrad(() => {
        mask = maskOf(batch, eva);
        return withoutAdapters(model, () => loss.call(model, batch));
      });
      await result.data(); // and all that was gathered
    }
  } finally {
    for (const layer of watched) delete layer.forward; // the class's own is there again
    for (const [module, training] of modes) module.training = training;
  }
}

/**
 * 1 for each position of a batch that counts, [rows]; null where all do. Those are the positions that
 * attention sees and, with use_label_mask, whose own token has a label.
 */
function maskOf(batch: object, eva: Required<EvaConfig>): Tensor | null {
  type Values = Tensor | Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>;
  const given = batch as { readonly [key: string]: Values | undefined };
  const { inputs, targets, labels, attentionMask } = given;
  const shape = "shape" in batch ? batch.shape as number[] : (inputs as Tensor | undefined)?.shape;
  if (shape?.length !== 2) return null;
  const [b, t] = shape;
  const rows = (values: Values): Tensor =>
    ArrayBuffer.isView(values) ? tensor(values, { shape: [b, t] }) : values;
  const sizeOf = (values: Values): number =>
    ArrayBuffer.isView(values) ? values.length : values.size;
  const isLabel = (values: Tensor): Tensor => values.ne(eva.label_mask_value).to("f32");
  let mask: Tensor | null = attentionMask ? rows(attentionMask).ne(0).to("f32") : null;
  const and = (other: Tensor): Tensor => mask ? mask.mul(other) : other;
  if (eva.use_label_mask && inputs && targets) {
    // A target is the next token's label. The first has none before it, and goes with its neighbour.
    const wanted = rows(targets), first = isLabel(wanted.slice(1, 0, 1));
    const before = wanted.slice(1, 0, t - 1); // of the positions from 1 on
    mask = and(
      t === 1 ? first : concatenate(
        [first, isLabel(before).mul(before.eq(rows(inputs).slice(1, 1)).to("f32"))],
        1,
      ),
    );
  } else if (eva.use_label_mask && labels && sizeOf(labels) === b * t) {
    mask = and(isLabel(rows(labels))); // a label for each token
  }
  return mask && mask.flatten();
}

/** The largest rank that each target may get. Those that are given the same have that of the largest. */
function mostRanks(
  targets: readonly Target[],
  gathered: ReadonlyMap<string, Gathered>,
  rho: number,
): Map<string, number> {
  const groups = new Map<Gathered | undefined, number>();
  for (const { path, r } of targets) {
    const own = gathered.get(path);
    groups.set(own, Math.max(groups.get(own) ?? 0, roundedEven(r * rho)));
  }
  return new Map(targets.map(({ path }) => [path, groups.get(gathered.get(path))!]));
}

/** A half goes to the even neighbour, as in Python. */
function roundedEven(x: number): number {
  const rounded = Math.round(x);
  return rounded - x === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded;
}

/** The directions that each target's inputs have. */
async function decomposed(
  targets: readonly Target[],
  gathered: ReadonlyMap<string, Gathered>,
  most: ReadonlyMap<string, number>,
): Promise<Map<string, Directions>> {
  const known = new Map<Gathered, Directions>();
  const found = new Map<string, Directions>();
  for (const { path } of targets) {
    const own = gathered.get(path);
    if (!own) {
      throw new RangeError(
        `LoRA: init_lora_weights "eva" needs batches in which ${path} has a part; it saw none`,
      );
    }
    const wanted = Math.min(own.sum.size, most.get(path)!);
    const directions = known.get(own) ?? await directionsOf(own, wanted, path);
    known.set(own, directions);
    found.set(path, directions);
  }
  return found;
}

async function directionsOf(
  gathered: Gathered,
  wanted: number,
  path: string,
): Promise<Directions> {
  const what = `LoRA: init_lora_weights "eva"`;
  const [[count], sum, products] = await read(gathered.count, gathered.sum, gathered.products);
  // The mean takes one direction away.
  if (!(count > wanted)) {
    throw new RangeError(
      `${what} needs more than ${wanted} tokens that count to find as many directions, got ` +
        `${count} at ${path}; give more batches, or use_label_mask: false`,
    );
  }
  const size = sum.length;
  const centred = Float64Array.from(
    products,
    (x, i) => x - sum[Math.floor(i / size)] * sum[i % size] / count,
  );
  let total = 0, before = 0;
  for (let i = 0; i < size; i++) {
    total += centred[i * size + i];
    before += products[i * size + i];
  }
  // Below that it is rounding of 32-bit sums.
  if (!(total > 1e-6 * before && total < Infinity)) {
    throw new RangeError(
      `${what} needs inputs that differ and are finite; the variance at ${path} is ${total}`,
    );
  }
  // The values are squares, so few iterations tell the large ones from the small.
  const iterations = size <= EXACT ? undefined : 8;
  const { u, s } = topSvd(columns(centred, size, size), wanted, iterations);
  for (const vector of u) {
    // PEFT's choice between a direction and its opposite.
    const largest = vector.reduce((most, x) => Math.abs(x) > Math.abs(most) ? x : most, 0);
    if (largest < 0) vector.forEach((x, i) => vector[i] = -x);
  }
  return { vectors: u, values: s.map(Math.sqrt), shares: s.map((x) => x / total) };
}

/** The configuration that says which layer has which rank, as PEFT writes it. */
function withRanks(
  config: ResolvedLoraConfig,
  targets: readonly Target[],
  ranks: ReadonlyMap<string, number>,
): ResolvedLoraConfig {
  const kept = targets.filter(({ path }) => ranks.has(path));
  const { adjust_scaling_factors: adjusts } = config.eva_config!;
  const alphaOf = ({ path, r, alpha }: Target): number =>
    adjusts ? alpha * (ranks.get(path)! / r) : alpha;
  const pattern = (of: (target: Target) => number, rule: number): Record<string, number> =>
    Object.fromEntries(
      kept.map((target) => [target.path, of(target)] as const).filter(([, x]) => x !== rule),
    );
  return {
    ...config,
    rank_pattern: pattern(({ path }) => ranks.get(path)!, config.r),
    alpha_pattern: pattern(alphaOf, config.lora_alpha),
    target_modules: kept.map(({ path }) => path),
  };
}

/**
 * Text generation with a cache of keys and values.
 *
 * @module
 */

import { currentDevice, Generator, noGrad, type Tensor, tensor } from "../core/mod.ts";
import { iota } from "../core/ops/iota.ts";
import { threefryWord } from "../core/random.ts";
import { readOnce } from "../core/tensor.ts";
import type { KVCache } from "./models/cache.ts";
import type { ForwardOptions } from "./models/decoder.ts";
import type { Module } from "./module.ts";
import { checkSampling, sampleToken, type SamplingOptions } from "./sampling.ts";

/** What generation needs of a model. */
export interface GenerativeModel extends Module {
  /** As in Hugging Face's `config.json`. */
  readonly config: {
    /** Longest sequence, in tokens. */
    readonly max_position_embeddings: number;
    /** The tokens that end a text. */
    readonly eos_token_id?: number | readonly number[] | null;
    /** Tokens in the vocabulary. */
    readonly vocab_size: number;
    /** How far back attention sees, where it does not see everything. */
    readonly sliding_window?: unknown;
  };
  /** As Hugging Face's `generation_config.json`: its eos_token_id stands over that of `config`. */
  readonly generationConfig?: Readonly<Record<string, unknown>> | null;
  /** A soft prompt before every row; its virtual tokens take positions. */
  readonly prompt?: { readonly length: number } | null;
  /** i32 [B, T] -> the last hidden states, [B, T, hidden]. */
  forward(ids: Tensor, options?: ForwardOptions): Tensor;
  /** Scores of each token as the next one: [..., hidden] -> [..., V] */
  logits(hidden: Tensor): Tensor;
  /** An empty cache for `batch` rows of up to `capacity` positions. */
  createCache(batch: number, capacity: number): KVCache;
}

/** Options of {@linkcode generate} and {@linkcode generateBatch}. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens to generate at most. Default 128. */
  readonly maxTokens?: number;
  /** Tokens that end a row; they are not part of the result. Default: eos_token_id. */
  readonly stopTokens?: readonly number[];
  /** Where sampling draws from: a seed, or a generator that goes on. Default seed 0. */
  readonly generator?: Generator | number;
  /**
   * A cache to use, and to leave to the caller. Default: one that stays with the model for the next
   * generation of the same size, which then replays the plans of this one.
   */
  readonly cache?: KVCache;
}

/** A generated row. */
export interface Generated {
  /** The new tokens. */
  readonly tokens: number[];
  /** The stop token that ended it, or null where its length did. */
  readonly stop: number | null;
}

/** Prompts are padded to a multiple of this, so that their plans are few. */
const PROMPT_MULTIPLE = 16;

/**
 * Generates from one prompt, token by token. It ends with a stop token (which is not given out), after
 * `maxTokens`, or where the model's longest sequence is reached.
 *
 * Throws a `RangeError` on an empty or too long prompt, a token outside the vocabulary, or options out
 * of range.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { generate, LlamaForCausalLM } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * for await (const token of generate(model, [1, 2, 3], { maxTokens: 4 })) console.log(token);
 * ```
 */
export async function* generate(
  model: GenerativeModel,
  prompt: ArrayLike<number>,
  options: GenerateOptions = {},
): AsyncGenerator<number, void> {
  for await (const [step] of decode(model, [prompt], options)) {
    if (step !== null && step.stop === null) yield step.token;
  }
}

/** Generates from several prompts at once; they may differ in length. Throws as {@linkcode generate}. */
export async function generateBatch(
  model: GenerativeModel,
  prompts: readonly ArrayLike<number>[],
  options: GenerateOptions = {},
): Promise<Generated[]> {
  const rows = prompts.map(() => ({ tokens: [] as number[], stop: null as number | null }));
  for await (const steps of decode(model, prompts, options)) {
    steps.forEach((step, b) => {
      if (step === null) return;
      if (step.stop !== null) rows[b].stop = step.stop;
      else rows[b].tokens.push(step.token);
    });
  }
  return rows;
}

/** What one step brought a row: a token, or the stop token that ended it. */
interface Step {
  readonly token: number;
  readonly stop: number | null;
}

/** All rows, one step at a time; null for a row that has ended. */
async function* decode(
  model: GenerativeModel,
  prompts: readonly ArrayLike<number>[],
  options: GenerateOptions,
): AsyncGenerator<(Step | null)[], void> {
  const { maxTokens = 128, generator = 0 } = options;
  const { vocab_size: vocab } = model.config;
  const lead = model.prompt?.length ?? 0;
  const longest = model.config.max_position_embeddings - lead;
  checkSampling(options);
  if (!Number.isInteger(maxTokens) || maxTokens < 0) {
    throw new RangeError(`generate: maxTokens must be a whole number, got ${maxTokens}`);
  }
  if (prompts.length === 0) throw new RangeError("generate: needs at least one prompt");
  prompts.forEach((prompt, b) => {
    if (prompt.length < 1 || prompt.length > longest) {
      throw new RangeError(
        `generate: prompt ${b} needs 1 to ${longest} tokens` +
          (lead > 0 ? `, which a soft prompt of ${lead} leaves` : "") + `, got ${prompt.length}`,
      );
    }
    for (const id of Array.from(prompt)) {
      if (!Number.isInteger(id) || id < 0 || id >= vocab) {
        throw new RangeError(`generate: prompt ${b} needs tokens in [0, ${vocab}), got ${id}`);
      }
    }
  });
  if (maxTokens === 0) return;
  const stops = new Set(options.stopTokens ?? endTokens(model));
  const random = typeof generator === "number" ? new Generator(generator) : generator;

  const batch = prompts.length;
  const widest = Math.max(...prompts.map((p) => p.length));
  // Padding stands between a soft prompt and the tokens, where a window would be spent on it.
  const multiple = lead > 0 && model.config.sliding_window ? 1 : PROMPT_MULTIPLE;
  const width = Math.ceil(widest / multiple) * multiple;
  const pads = prompts.map((p) => width - p.length);
  const seen = prompts.map((p) => Array.from(p));
  const done = prompts.map(() => false);
  // The last token that is generated is never fed back.
  const capacity = width + maxTokens - 1;
  const cache = options.cache ?? spareCache(model, batch, capacity);
  if (cache.batch !== batch || cache.capacity < capacity) {
    throw new RangeError(
      `generate: needs a cache of ${batch} rows of ${capacity} positions, got ${cache.batch} of ` +
        `${cache.capacity}`,
    );
  }
  cache.reset();
  const modes = model.modules().map((module) => [module, module.training] as const);
  model.eval();
  try {
    let ids = new Int32Array(batch * width); // [B, width], padded on the left with 0
    prompts.forEach((p, b) => ids.set(Array.from(p), b * width + pads[b]));
    let length = width;
    for (let step = 0; step < maxTokens; step++) {
      const logits = noGrad(() => nextLogits(model, ids, length, pads, cache, longest)); // [B, V]
      const rows = await readOnce(logits as Tensor<"f32">);
      const { key0, key1, counter } = random.next();
      const steps = seen.map((tokens, b): Step | null => {
        if (done[b]) return null;
        const draw = (threefryWord(key0, key1, b, counter) >>> 0) / 2 ** 32;
        const token = sampleToken(rows.subarray(b * vocab, (b + 1) * vocab), options, tokens, draw);
        tokens.push(token);
        const stop = stops.has(token) ? token : null;
        done[b] = stop !== null || tokens.length >= longest;
        return { token, stop };
      });
      yield steps;
      if (done.every((d) => d)) return;
      ids = Int32Array.from(seen, (tokens) => tokens[tokens.length - 1]); // [B, 1]
      length = 1;
    }
  } finally {
    for (const [module, training] of modes) module.training = training;
    if (!options.cache) keepSpare(model, cache);
  }
}

/** The cache that each model's last generation left. One that is in use is not here. */
const spares = new WeakMap<GenerativeModel, KVCache>();

/** The spare cache where it fits, or a new one: plans are bound to the memory of a cache. */
function spareCache(model: GenerativeModel, batch: number, capacity: number): KVCache {
  const spare = spares.get(model);
  const fits = spare !== undefined && spare.batch === batch && spare.capacity === capacity &&
    spare.lead === (model.prompt?.length ?? 0) && spare.keys[0].device === currentDevice();
  if (!fits) return model.createCache(batch, capacity);
  spares.delete(model);
  return spare;
}

function keepSpare(model: GenerativeModel, cache: KVCache): void {
  spares.get(model)?.dispose();
  spares.set(model, cache);
}

/** The tokens that end a text. */
function endTokens({ config, generationConfig }: GenerativeModel): number[] {
  const end = generationConfig?.eos_token_id ?? config.eos_token_id ?? [];
  const tokens = [end].flat();
  if (!tokens.every((token) => Number.isInteger(token))) {
    throw new TypeError(
      `generate: eos_token_id must be a token or a list, is ${JSON.stringify(end)}`,
    );
  }
  return tokens as number[];
}

/** Logits after the last of `length` more tokens a row: ids [B, length] -> [B, V]. */
function nextLogits(
  model: GenerativeModel,
  ids: Int32Array<ArrayBuffer>,
  length: number,
  pads: readonly number[],
  cache: KVCache,
  longest: number,
): Tensor {
  const batch = pads.length;
  const before = cache.length;
  const positions = new Int32Array(batch * length);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < length; i++) {
      // Padding, and rows that have ended, stand anywhere in the range.
      const position = before + i - pads[b];
      positions[b * length + i] = Math.min(Math.max(position, 0), longest - 1);
    }
  }
  const first = tensor(Int32Array.from(pads), { shape: [batch, 1, 1, 1] });
  const key = iota([1, 1, 1, cache.capacity], 3);
  const query = iota([1, 1, length, 1], 2).add(before);
  // Nobody attends to padding but padding itself, which has to attend to something.
  const mask = key.ge(first).or(query.lt(first)); // [B, 1, T, capacity]
  const tokens = tensor(ids, { shape: [batch, length] });
  const hidden = model.forward(tokens, { positions, mask, cache }); // [B, T, hidden]
  return model.logits(hidden.slice(1, length - 1).squeeze(1)); // [B, hidden] -> [B, V]
}

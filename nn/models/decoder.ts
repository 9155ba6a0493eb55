/**
 * What decoders share: options of a pass, attention with a cache, the loss.
 *
 * @module
 */

import {
  attention,
  type AttentionOptions,
  concatenate,
  crossEntropy,
  linearCrossEntropy,
  type Tensor,
  tensor,
} from "../../core/mod.ts";
import type { Embedding } from "../embedding.ts";
import { Linear } from "../linear.ts";
import type { KVCache } from "./cache.ts";
import { PretrainedModel } from "./pretrained_model.ts";
import { separated } from "./sequence_layout.ts";
import {
  type LayerPrefix,
  type PromptHost,
  type PromptPass,
  type PromptSizes,
  type SoftPrompt,
  widenMask,
} from "./prompt.ts";

/** Options of a forward pass. */
export interface ForwardOptions {
  /** Position of each token, [B, T]; default: 0, 1, ... from the cache's length on. */
  readonly positions?: Int32Array<ArrayBuffer>;
  /** bool, broadcastable to [B, H, T, keys]: true where a key may be attended to. */
  readonly mask?: Tensor;
  /** Keys and values of earlier positions; those of this pass are added. */
  readonly cache?: KVCache;
  /** What stands before the tokens of every row. A model with a `prompt` of its own gives it here. */
  readonly prompt?: PromptPass;
}

/**
 * A batch of next-token prediction, as tensors or as a data loader gives it: inputs i32 [B, T], and
 * targets [B, T], the token after each input, -100 where it does not count. With `documents` [B, T] a
 * token attends to those of its row that have its number alone, and positions begin at 0 where another
 * begins: several texts in a row, each as if it stood alone, or padding with a number of its own.
 */
export type LanguageBatch =
  | { readonly inputs: Tensor; readonly targets: Tensor }
  | {
    readonly inputs: Int32Array<ArrayBuffer>;
    readonly targets: Int32Array<ArrayBuffer>;
    readonly documents?: Int32Array<ArrayBuffer>;
    readonly shape: readonly [batch: number, sequence: number];
  };

/** What the blocks work on in a pass, checked; a prompt's vectors count as new positions. */
export interface PassSizes {
  /** Rows. */
  readonly b: number;
  /** New positions. */
  readonly t: number;
  /** Position of the first of them. */
  readonly before: number;
  /** As in {@linkcode ForwardOptions}, of the new positions. */
  readonly positions?: Int32Array<ArrayBuffer>;
  /** As in {@linkcode ForwardOptions}, of the new positions and all keys. */
  readonly mask?: Tensor;
  /** The prompt, where its vectors stand before the tokens of this pass. */
  readonly inserted?: PromptPass;
  /** Keys and values that stand before those of this pass, for each block. */
  readonly prefix?: readonly LayerPrefix[];
}

/**
 * The sizes of a pass over `ids`.
 *
 * Throws a `RangeError` where ids are not [B, T], the cache has no room for T more positions or was made
 * for another prompt, or there are not B · T positions.
 */
export function passSizes(what: string, ids: Tensor, options: ForwardOptions): PassSizes {
  if (ids.rank !== 2 || ids.size === 0) {
    throw new RangeError(`${what}: needs tokens [B, T], got [${ids.shape.join(", ")}]`);
  }
  const [b, t] = ids.shape;
  const { cache, positions, mask, prompt } = options;
  const seen = cache?.length ?? 0;
  if (cache && (cache.batch !== b || seen + t > cache.capacity)) {
    throw new RangeError(
      `${what}: the cache holds ${cache.batch} rows of ${cache.capacity} positions, of which ` +
        `${seen} are taken; got tokens [${b}, ${t}]`,
    );
  }
  if (positions && positions.length !== b * t) {
    throw new RangeError(
      `${what}: needs ${b * t} positions for tokens [${b}, ${t}], got ${positions.length}`,
    );
  }
  const lead = prompt?.length ?? 0;
  if (cache && cache.lead !== lead) {
    throw new RangeError(
      `${what}: the cache was made for a prompt of ${cache.lead} virtual tokens, and the model has ` +
        `one of ${lead}; make a cache with createCache() after the prompt is changed`,
    );
  }
  if (!prompt) return { b, t, before: seen, positions, mask };

  const first = seen === 0; // later passes find the prompt in the cache
  const inserted = first && prompt.embeddings ? prompt : undefined;
  const n = inserted ? lead : 0;
  return {
    b,
    t: n + t,
    before: first && inserted ? 0 : lead + seen,
    positions: positions && shifted(positions, b, n, lead),
    mask: mask && widenMask(mask, n, lead, cache?.capacity ?? t),
    inserted,
    prefix: first ? prompt.layers : undefined,
  };
}

/** Positions of tokens, [B, T], after `lead` virtual ones, of which `n` get rows of their own before. */
function shifted(
  positions: Int32Array<ArrayBuffer>,
  b: number,
  n: number,
  lead: number,
): Int32Array<ArrayBuffer> {
  const t = positions.length / b;
  const all = new Int32Array(b * (n + t));
  for (let row = 0; row < b; row++) {
    for (let i = 0; i < n; i++) all[row * (n + t) + i] = i;
    for (let i = 0; i < t; i++) all[row * (n + t) + n + i] = lead + positions[row * t + i];
  }
  return all;
}

/** [B, T, H · D] -> [B, H, T, D] */
export function splitHeads(x: Tensor, heads: number): Tensor {
  const [b, t, size] = x.shape;
  return x.reshape(b, t, heads, size / heads).permute(0, 2, 1, 3);
}

/** [B, H, T, D] -> [B, T, H · D] */
export function joinHeads(x: Tensor): Tensor {
  const [b, h, t, d] = x.shape;
  return x.permute(0, 2, 1, 3).reshape(b, t, h * d);
}

/** Settings of {@linkcode causalAttention}. */
export interface CausalOptions
  extends Pick<AttentionOptions, "mask" | "window" | "scale" | "dropout"> {
  /** What stands before the keys and values. */
  readonly prefix?: LayerPrefix;
}

/**
 * Causal attention of layer `layer`: q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, T, H · D]. With a
 * cache, k and v go into it, after a prefix, and all that it holds is attended to.
 */
export function causalAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  layer: number,
  cache: KVCache | undefined,
  { prefix, ...options }: CausalOptions,
): Tensor {
  if (prefix) { // [B, Hkv, n + T, D]
    const [b, heads, , d] = k.shape;
    const before = (x: Tensor): Tensor => x.expand(b, heads, x.shape[2], d);
    k = concatenate([before(prefix.keys), k], 2);
    v = concatenate([before(prefix.values), v], 2);
  }
  let keys = k.shape[2];
  if (cache) {
    // A prompt is written with the first tokens, and stands before all that follow.
    const before = cache.length === 0 ? 0 : cache.lead + cache.length;
    keys += before;
    k = cache.keys[layer].update(k, 2, before); // [B, Hkv, lead + capacity, D]
    v = cache.values[layer].update(v, 2, before);
  }
  return joinHeads(attention(q, k, v, { ...options, causal: true, keys }));
}

/** A decoder with its output layer: what generation, training and their helpers need of one. */
export abstract class CausalLM extends PretrainedModel implements PromptHost {
  /** A soft prompt before every input, or null. */
  prompt: SoftPrompt | null = null;
  /** The layer that makes logits: its weight is [V, hidden]. */
  abstract lm_head: Linear;

  /** The configuration, defaults filled in, with the sizes that generation needs. */
  abstract override get config(): Readonly<Record<string, unknown>> & {
    /** Tokens in the vocabulary. */
    readonly vocab_size: number;
    /** Longest sequence, in tokens. */
    readonly max_position_embeddings: number;
    /** The tokens that end a text. */
    readonly eos_token_id?: number | readonly number[] | null;
  };

  /** i32 [B, T] -> the last hidden states, [B, T, hidden]. */
  abstract forward(ids: Tensor, options?: ForwardOptions): Tensor;

  /** An empty cache for `batch` rows of up to `capacity` positions. */
  abstract createCache(batch: number, capacity: number): KVCache;

  /** [..., hidden] -> [..., V] */
  logits(hidden: Tensor): Tensor {
    return this.lm_head.forward(hidden);
  }

  /**
   * Mean cross-entropy a target, in nats. The logits of all positions are never held at once, unless
   * the output layer is adapted.
   */
  loss(batch: LanguageBatch, options: ForwardOptions = {}): Tensor {
    const { inputs, targets } = "shape" in batch
      ? {
        inputs: tensor(batch.inputs, { shape: batch.shape }),
        targets: tensor(batch.targets, { shape: batch.shape }),
      }
      : batch;
    const documents = "documents" in batch ? batch.documents : undefined;
    const hidden = this.forward(
      inputs,
      documents ? separated(documents, inputs.shape, options) : options,
    );
    const wanted = targets.flatten(); // [B·T]
    const rows = hidden.reshape(-1, hidden.shape.at(-1)!); // [B·T, hidden]
    // An adapted or biased output layer is more than its weight.
    if (this.lm_head.constructor === Linear && !this.lm_head.bias) {
      return linearCrossEntropy(rows, this.lm_head.weight, wanted);
    }
    return crossEntropy(this.logits(rows), wanted);
  }

  /** Sizes that a soft prompt has to fit. Throws a `TypeError` where the model takes none. */
  promptSizes(): PromptSizes {
    throw new TypeError(`${this.constructor.name} takes no soft prompt`);
  }

  /** The table of token vectors. Throws a `TypeError` where the model takes no soft prompt. */
  inputEmbedding(): Embedding {
    throw new TypeError(`${this.constructor.name} takes no soft prompt`);
  }

  /**
   * The options of a pass with the model's prompt in them.
   *
   * Throws a `RangeError` where the prompt leaves too few positions for the tokens.
   */
  protected prompted(ids: Tensor, options: ForwardOptions): ForwardOptions {
    const prompt = options.prompt ?? this.prompt?.pass();
    if (!prompt) return options;
    const { positions } = this.promptSizes();
    const left = positions - prompt.length;
    const needed = options.positions
      ? options.positions.reduce((most, p) => Math.max(most, p + 1), 0)
      : (options.cache?.length ?? 0) + (ids.shape[1] ?? 0);
    if (needed > left) {
      throw new RangeError(
        `${this.constructor.name}: a prompt of ${prompt.length} virtual tokens leaves ${left} of ` +
          `${positions} positions, got tokens up to position ${needed}`,
      );
    }
    return { ...options, prompt };
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.lm_head;
  }
}

/**
 * What decoders share: options of a pass, attention with a cache, the loss.
 *
 * @module
 */

import {
  attention,
  type AttentionOptions,
  crossEntropy,
  linearCrossEntropy,
  type Tensor,
  tensor,
} from "../../core/mod.ts";
import { Linear } from "../linear.ts";
import type { KVCache } from "./cache.ts";
import { PretrainedModel } from "./pretrained_model.ts";

/** Options of a forward pass. */
export interface ForwardOptions {
  /** Position of each token, [B, T]; default: 0, 1, ... from the cache's length on. */
  readonly positions?: Int32Array<ArrayBuffer>;
  /** bool, broadcastable to [B, H, T, keys]: true where a key may be attended to. */
  readonly mask?: Tensor;
  /** Keys and values of earlier positions; those of this pass are added. */
  readonly cache?: KVCache;
}

/**
 * A batch of next-token prediction, as tensors or as a data loader gives it: inputs i32 [B, T], and
 * targets [B, T], the token after each input, -100 where it does not count.
 */
export type LanguageBatch =
  | { readonly inputs: Tensor; readonly targets: Tensor }
  | {
    readonly inputs: Int32Array<ArrayBuffer>;
    readonly targets: Int32Array<ArrayBuffer>;
    readonly shape: readonly [batch: number, sequence: number];
  };

/** Sizes of a pass, checked. */
export interface PassSizes {
  /** Rows. */
  readonly b: number;
  /** New positions. */
  readonly t: number;
  /** Positions in the cache. */
  readonly before: number;
}

/**
 * The sizes of a pass over `ids`.
 *
 * Throws a `RangeError` where ids are not [B, T], the cache has no room for T more positions, or there
 * are not B · T positions.
 */
export function passSizes(what: string, ids: Tensor, options: ForwardOptions): PassSizes {
  if (ids.rank !== 2 || ids.size === 0) {
    throw new RangeError(`${what}: needs tokens [B, T], got [${ids.shape.join(", ")}]`);
  }
  const [b, t] = ids.shape;
  const { cache, positions } = options;
  const before = cache?.length ?? 0;
  if (cache && (cache.batch !== b || before + t > cache.capacity)) {
    throw new RangeError(
      `${what}: the cache holds ${cache.batch} rows of ${cache.capacity} positions, of which ` +
        `${before} are taken; got tokens [${b}, ${t}]`,
    );
  }
  if (positions && positions.length !== b * t) {
    throw new RangeError(
      `${what}: needs ${b * t} positions for tokens [${b}, ${t}], got ${positions.length}`,
    );
  }
  return { b, t, before };
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

/**
 * Causal attention of layer `layer`: q [B, H, T, D], k and v [B, Hkv, T, D] -> [B, T, H · D]. With a
 * cache, k and v go into it and all that it holds is attended to.
 */
export function causalAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  layer: number,
  cache: KVCache | undefined,
  options: Pick<AttentionOptions, "mask" | "window" | "scale" | "dropout">,
): Tensor {
  const before = cache?.length ?? 0;
  const keys = before + q.shape[2];
  if (cache) {
    k = cache.keys[layer].update(k, 2, before); // [B, Hkv, capacity, D]
    v = cache.values[layer].update(v, 2, before);
  }
  return joinHeads(attention(q, k, v, { ...options, causal: true, keys }));
}

/** A decoder with its output layer: what generation, training and their helpers need of one. */
export abstract class CausalLM extends PretrainedModel {
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
    const hidden = this.forward(inputs, options);
    const wanted = targets.flatten(); // [B·T]
    const rows = hidden.reshape(-1, hidden.shape.at(-1)!); // [B·T, hidden]
    // An adapted or biased output layer is more than its weight.
    if (this.lm_head.constructor === Linear && !this.lm_head.bias) {
      return linearCrossEntropy(rows, this.lm_head.weight, wanted);
    }
    return crossEntropy(this.logits(rows), wanted);
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.lm_head;
  }
}

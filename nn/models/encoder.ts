/**
 * The encoder that BERT and RoBERTa share (Devlin et al. 2019), under the names of Hugging Face.
 *
 * @module
 */

import { attention, concatenate, type Tensor, tensor } from "../../core/mod.ts";
import { activation } from "../activations.ts";
import { Dropout } from "../dropout.ts";
import { Embedding } from "../embedding.ts";
import { Linear } from "../linear.ts";
import { Module } from "../module.ts";
import { LayerNorm } from "../norm.ts";
import { joinHeads, splitHeads } from "./decoder.ts";
import type { ResolvedEncoderConfig } from "./encoder_config.ts";
import { type LayerPrefix, type PromptPass, runBlock, withEmbeddings } from "./prompt.ts";

/** Options of an encoder's pass. */
export interface EncoderOptions {
  /** i32 or bool [B, T]: 0 where padding is; default: nowhere. */
  readonly attentionMask?: Tensor;
  /** i32 [B, T]: 0 for tokens of the first sentence, 1 for those of the second; default: all 0. */
  readonly tokenTypes?: Tensor;
  /** What stands before the tokens of every row. A model with a `prompt` of its own gives it here. */
  readonly prompt?: PromptPass;
}

/** Sums of a token's, its position's and its kind's vectors, normalised. */
export class EncoderEmbeddings extends Module {
  /** [V, C] */
  word_embeddings: Embedding;
  /** [max_position_embeddings, C] */
  position_embeddings: Embedding;
  /** [type_vocab_size, C] */
  token_type_embeddings: Embedding;
  /** Of the sum. */
  LayerNorm: LayerNorm;
  /** Of the result. */
  dropout: Dropout;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    const { hidden_size: size } = config;
    this.word_embeddings = new Embedding(config.vocab_size, size);
    this.position_embeddings = new Embedding(config.max_position_embeddings, size);
    this.token_type_embeddings = new Embedding(config.type_vocab_size, size);
    this.LayerNorm = new LayerNorm(size, config.layer_norm_eps);
    this.dropout = new Dropout(config.hidden_dropout_prob);
  }

  /**
   * ids [B, T], positions [n + T] or [B, n + T], types [B, T] -> [B, n + T, C], where a prompt has n
   * vectors to put before; they are of the first kind.
   */
  forward(ids: Tensor, positions: Tensor, types?: Tensor, prompt?: PromptPass): Tensor {
    let vectors = this.word_embeddings.forward(ids); // [B, T, C]
    let kinds = types ?? tensor(new Int32Array(1)); // [1]: all of the first kind
    if (prompt?.embeddings) {
      vectors = withEmbeddings(vectors, prompt);
      if (types) kinds = types.pad(1, prompt.length, 0); // [B, n + T]
    }
    const sum = vectors.add(this.token_type_embeddings.forward(kinds))
      .add(this.position_embeddings.forward(positions));
    return this.dropout.forward(this.LayerNorm.forward(sum));
  }
}

/** Multi-head attention in both directions, before its output layer. */
export class EncoderSelfAttention extends Module {
  /** [C, C] */
  query: Linear;
  /** [C, C] */
  key: Linear;
  /** [C, C] */
  value: Linear;
  readonly #config: ResolvedEncoderConfig;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    const { hidden_size: size } = config;
    this.query = new Linear(size, size);
    this.key = new Linear(size, size);
    this.value = new Linear(size, size);
    this.#config = config;
  }

  /** [B, T, C] -> keys and values, [B, H, T, D] */
  keysAndValues(x: Tensor): LayerPrefix {
    const { num_attention_heads: h } = this.#config;
    return {
      keys: splitHeads(this.key.forward(x), h),
      values: splitHeads(this.value.forward(x), h),
    };
  }

  /** [B, T, C], mask bool [B, 1, 1, n + T], n keys and values before those of x -> [B, T, C] */
  forward(x: Tensor, mask?: Tensor, prefix?: LayerPrefix): Tensor {
    const { num_attention_heads: h, attention_probs_dropout_prob: p } = this.#config;
    const q = splitHeads(this.query.forward(x), h); // [B, H, T, D]
    let { keys: k, values: v } = this.keysAndValues(x);
    if (prefix) { // [B, H, n + T, D]
      const [b, , , d] = k.shape;
      const before = (rows: Tensor): Tensor => rows.expand(b, h, rows.shape[2], d);
      k = concatenate([before(prefix.keys), k], 2);
      v = concatenate([before(prefix.values), v], 2);
    }
    return joinHeads(attention(q, k, v, { mask, dropout: this.training ? p : 0 }));
  }
}

/** A linear layer whose result is added to the residual, then normalised. */
export class EncoderOutput extends Module {
  /** [C, in] */
  dense: Linear;
  /** Of the sum. */
  LayerNorm: LayerNorm;
  /** Before the sum. */
  dropout: Dropout;

  /** From `size` to the hidden size. */
  constructor(config: ResolvedEncoderConfig, size: number) {
    super();
    this.dense = new Linear(size, config.hidden_size);
    this.LayerNorm = new LayerNorm(config.hidden_size, config.layer_norm_eps);
    this.dropout = new Dropout(config.hidden_dropout_prob);
  }

  /** [B, T, in], residual [B, T, C] -> [B, T, C] */
  forward(x: Tensor, residual: Tensor): Tensor {
    return this.LayerNorm.forward(this.dropout.forward(this.dense.forward(x)).add(residual));
  }
}

/** Attention and its output layer. */
export class EncoderAttention extends Module {
  /** Attention. */
  self: EncoderSelfAttention;
  /** Its output layer. */
  output: EncoderOutput;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.self = new EncoderSelfAttention(config);
    this.output = new EncoderOutput(config, config.hidden_size);
  }

  /** [B, T, C] -> [B, T, C] */
  forward(x: Tensor, mask?: Tensor, prefix?: LayerPrefix): Tensor {
    return this.output.forward(this.self.forward(x, mask, prefix), x);
  }
}

/** The first feed-forward layer. */
export class EncoderIntermediate extends Module {
  /** [inner, C] */
  dense: Linear;
  readonly #act: (x: Tensor) => Tensor;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.dense = new Linear(config.hidden_size, config.intermediate_size);
    this.#act = activation(config.hidden_act);
  }

  /** [B, T, C] -> [B, T, inner] */
  forward(x: Tensor): Tensor {
    return this.#act(this.dense.forward(x));
  }
}

/** One layer: attention and feed-forward, each around a residual and before a norm. */
export class EncoderLayer extends Module {
  /** Attention. */
  attention: EncoderAttention;
  /** The first feed-forward layer. */
  intermediate: EncoderIntermediate;
  /** The second. */
  output: EncoderOutput;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.attention = new EncoderAttention(config);
    this.intermediate = new EncoderIntermediate(config);
    this.output = new EncoderOutput(config, config.intermediate_size);
  }

  /** [B, T, C] -> [B, T, C] */
  forward(x: Tensor, mask?: Tensor, prefix?: LayerPrefix): Tensor {
    const y = this.attention.forward(x, mask, prefix);
    return this.output.forward(this.intermediate.forward(y), y);
  }
}

/** The layers. */
export class Encoder extends Module {
  /** In order. */
  layer: EncoderLayer[];
  /** Whether layers are computed again in backward rather than held: less memory, more time. */
  gradientCheckpointing = false;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.layer = Array.from({ length: config.num_hidden_layers }, () => new EncoderLayer(config));
  }

  /** [B, T, C], mask bool [B, 1, 1, n + T], n keys and values before each layer's -> [B, T, C] */
  forward(x: Tensor, mask?: Tensor, prefix?: readonly LayerPrefix[]): Tensor {
    const again = this.gradientCheckpointing && this.training;
    this.layer.forEach((layer, i) => {
      x = runBlock((h, before) => layer.forward(h, mask, before), x, prefix?.[i], again);
    });
    return x;
  }

  /** [B, T, C] -> what each layer has for it */
  keysAndValues(x: Tensor): LayerPrefix[] {
    return this.layer.map((layer) => {
      const found = layer.attention.self.keysAndValues(x);
      x = layer.forward(x);
      return found;
    });
  }
}

/** The first token's hidden state through a linear layer and tanh. */
export class EncoderPooler extends Module {
  /** [C, C] */
  dense: Linear;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.dense = new Linear(config.hidden_size, config.hidden_size);
  }

  /** [B, T, C] -> [B, C] */
  forward(x: Tensor): Tensor {
    return this.dense.forward(x.select(1, 0)).tanh();
  }
}

/**
 * Checks that ids are [B, T], with room for T tokens among `positions` beside those of a prompt of n
 * virtual tokens, and gives B and T.
 *
 * Throws a `RangeError` that says what is wrong.
 */
export function encoderSizes(
  what: string,
  ids: Tensor,
  positions: number,
  n: number,
): [number, number] {
  if (ids.rank !== 2 || ids.size === 0) {
    throw new RangeError(`${what}: needs tokens [B, T], got [${ids.shape.join(", ")}]`);
  }
  const [b, t] = ids.shape;
  if (n + t > positions) {
    throw new RangeError(
      n === 0
        ? `${what}: has positions for ${positions} tokens (max_position_embeddings), got ${t}; cut the ` +
          "input"
        : `${what}: a prompt of ${n} virtual tokens leaves ${
          positions - n
        } of ${positions} positions, ` +
          `got ${t} tokens; cut the input`,
    );
  }
  return [b, t];
}

/**
 * An attention mask [B, T] of 0 and 1 -> bool [B, 1, 1, T].
 *
 * Throws a `RangeError` where its shape is another.
 */
export function keyMask(attentionMask: Tensor, b: number, t: number): Tensor {
  if (attentionMask.shape.join() !== `${b},${t}`) {
    throw new RangeError(
      `encoder: needs an attentionMask [${b}, ${t}], got [${attentionMask.shape.join(", ")}]`,
    );
  }
  const may = attentionMask.dtype === "bool" ? attentionMask : attentionMask.ne(0);
  return may.reshape(b, 1, 1, t);
}

/**
 * The encoder that BERT and RoBERTa share (Devlin et al. 2019), under the names of Hugging Face.
 *
 * @module
 */

import { attention, checkpoint, type Tensor, tensor } from "../../core/mod.ts";
import { activation } from "../activations.ts";
import { Dropout } from "../dropout.ts";
import { Embedding } from "../embedding.ts";
import { Linear } from "../linear.ts";
import { Module } from "../module.ts";
import { LayerNorm } from "../norm.ts";
import { joinHeads, splitHeads } from "./decoder.ts";
import type { ResolvedEncoderConfig } from "./encoder_config.ts";

/** Options of an encoder's pass. */
export interface EncoderOptions {
  /** i32 or bool [B, T]: 0 where padding is; default: nowhere. */
  readonly attentionMask?: Tensor;
  /** i32 [B, T]: 0 for tokens of the first sentence, 1 for those of the second; default: all 0. */
  readonly tokenTypes?: Tensor;
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

  /** ids [B, T], positions [T] or [B, T], types [B, T] -> [B, T, C] */
  forward(ids: Tensor, positions: Tensor, types?: Tensor): Tensor {
    const kinds = types ?? tensor(new Int32Array(1)); // [1]: all of the first kind
    const sum = this.word_embeddings.forward(ids)
      .add(this.token_type_embeddings.forward(kinds))
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

  /** [B, T, C], mask bool [B, 1, 1, T] -> [B, T, C] */
  forward(x: Tensor, mask?: Tensor): Tensor {
    const { num_attention_heads: h, attention_probs_dropout_prob: p } = this.#config;
    const [q, k, v] = [this.query, this.key, this.value].map((layer) =>
      splitHeads(layer.forward(x), h) // [B, H, T, D]
    );
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
  forward(x: Tensor, mask?: Tensor): Tensor {
    return this.output.forward(this.self.forward(x, mask), x);
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
  forward(x: Tensor, mask?: Tensor): Tensor {
    const y = this.attention.forward(x, mask);
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

  /** [B, T, C], attention mask [B, T] -> [B, T, C] */
  forward(x: Tensor, attentionMask?: Tensor): Tensor {
    const mask = attentionMask && keyMask(attentionMask, x);
    for (const layer of this.layer) {
      x = this.gradientCheckpointing && this.training
        ? checkpoint((h: Tensor) => layer.forward(h, mask), x)
        : layer.forward(x, mask);
    }
    return x;
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
 * Checks that ids are [B, T], with T up to `longest`, and gives both sizes.
 *
 * Throws a `RangeError` that says what is wrong.
 */
export function encoderSizes(what: string, ids: Tensor, longest: number): [number, number] {
  if (ids.rank !== 2 || ids.size === 0) {
    throw new RangeError(`${what}: needs tokens [B, T], got [${ids.shape.join(", ")}]`);
  }
  const [b, t] = ids.shape;
  if (t > longest) {
    throw new RangeError(
      `${what}: has positions for ${longest} tokens (max_position_embeddings), got ${t}; cut the input`,
    );
  }
  return [b, t];
}

/** [B, T] of 0 and 1 -> bool [B, 1, 1, T] */
function keyMask(attentionMask: Tensor, x: Tensor): Tensor {
  const [b, t] = x.shape;
  if (attentionMask.shape.join() !== `${b},${t}`) {
    throw new RangeError(
      `encoder: needs an attentionMask [${b}, ${t}], got [${attentionMask.shape.join(", ")}]`,
    );
  }
  const may = attentionMask.dtype === "bool" ? attentionMask : attentionMask.ne(0);
  return may.reshape(b, 1, 1, t);
}

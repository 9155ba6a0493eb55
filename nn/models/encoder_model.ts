/**
 * What BERT and RoBERTa are but for their positions and heads: the encoder as a model, the bases of its
 * heads, and where a soft prompt goes in.
 *
 * @module
 */

import { type Tensor, tensor } from "../../core/mod.ts";
import type { Embedding } from "../embedding.ts";
import {
  Encoder,
  EncoderEmbeddings,
  type EncoderOptions,
  EncoderPooler,
  encoderSizes,
  keyMask,
} from "./encoder.ts";
import type { EncoderConfig, ResolvedEncoderConfig } from "./encoder_config.ts";
import { type EncoderBatch, encoderInputs, sequenceLoss, tokenLoss } from "./encoder_heads.ts";
import { PretrainedModel } from "./pretrained_model.ts";
import {
  type LayerPrefix,
  type PromptHost,
  type PromptPass,
  type PromptSizes,
  type SoftPrompt,
  widenMask,
} from "./prompt.ts";

/** An encoder without a head: hidden states of all tokens, and one for the sequence. */
export abstract class EncoderModel extends PretrainedModel implements PromptHost {
  /** A soft prompt before every input, or null. */
  prompt: SoftPrompt | null = null;
  /** Of tokens. */
  embeddings: EncoderEmbeddings;
  /** The layers. */
  encoder: Encoder;
  /** For the first token; null where a head does without. */
  pooler: EncoderPooler | null;
  readonly #config: ResolvedEncoderConfig;

  /** Fresh weights, N(0, initializer_range), as Hugging Face's. `config` is as it was given. */
  constructor(config: EncoderConfig, resolved: ResolvedEncoderConfig, hasPooler: boolean) {
    super(config);
    this.#config = resolved;
    this.embeddings = new EncoderEmbeddings(resolved);
    this.encoder = new Encoder(resolved);
    this.pooler = hasPooler ? new EncoderPooler(resolved) : null;
    this.initialize(resolved.initializer_range);
  }

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.#config;
  }

  /** Row of the table of positions that the first token has. */
  protected abstract get firstPosition(): number;

  /** Rows of the table of positions, [n + T] or [B, n + T], for n vectors of a prompt and the tokens. */
  protected abstract positionsOf(ids: Tensor, prompt: PromptPass | undefined): Tensor;

  /**
   * i32 [B, T] -> the last hidden states, [B, T, C].
   *
   * Throws a `RangeError` where ids are not [B, T], or there are more than the table of positions holds
   * beside a prompt.
   */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    const states = this.states(ids, options);
    const n = states.shape[1] - ids.shape[1];
    return n === 0 ? states : states.slice(1, n);
  }

  /** As {@linkcode forward}, with those of a prompt's vectors first: [B, n + T, C]. */
  states(ids: Tensor, options: EncoderOptions = {}): Tensor {
    const prompt = options.prompt ?? this.prompt?.pass() ?? undefined;
    const n = prompt?.length ?? 0;
    const { attentionMask, tokenTypes } = options;
    const [b, t] = encoderSizes(this.constructor.name, ids, this.promptSizes().positions, n);
    const at = this.positionsOf(ids, prompt);
    const x = this.embeddings.forward(ids, at, tokenTypes, prompt); // [B, n + T, C]
    const mask = attentionMask && widenMask(keyMask(attentionMask, b, t), 0, n, t);
    return this.encoder.forward(x, mask, prompt?.layers);
  }

  /** Hidden states [B, T, C] -> one for each sequence, [B, C]. Throws where there is no pooler. */
  pooled(hidden: Tensor): Tensor {
    if (!this.pooler) throw new TypeError(`${this.constructor.name}: this one has no pooler`);
    return this.pooler.forward(hidden);
  }

  /** What each layer has for the tokens i32 [B, T], without a prompt. */
  keysAndValues(ids: Tensor): LayerPrefix[] {
    encoderSizes(this.constructor.name, ids, this.promptSizes().positions, 0);
    return this.encoder.keysAndValues(
      this.embeddings.forward(ids, this.positionsOf(ids, undefined)),
    );
  }

  /** Sizes that a soft prompt has to fit. */
  promptSizes(): PromptSizes {
    const { hidden_size, num_hidden_layers, num_attention_heads: heads } = this.#config;
    return {
      hidden: hidden_size,
      layers: num_hidden_layers,
      queryHeads: heads,
      heads,
      headDim: hidden_size / heads,
      positions: this.#config.max_position_embeddings - this.firstPosition,
    };
  }

  /** The table of token vectors. */
  inputEmbedding(): Embedding {
    return this.embeddings.word_embeddings;
  }
}

/** `count` positions from `first` on: [count] */
export function positionsFrom(first: number, count: number): Tensor {
  return tensor(Int32Array.from({ length: count }, (_, i) => first + i));
}

/** A head on an encoder. */
export abstract class EncoderHead extends PretrainedModel implements PromptHost {
  /** A soft prompt before every input, or null. */
  prompt: SoftPrompt | null = null;

  /** The encoder. */
  abstract backbone(): EncoderModel;

  /** i32 [B, T] -> logits */
  abstract forward(ids: Tensor, options?: EncoderOptions): Tensor;

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.backbone().config;
  }

  /** Sizes that a soft prompt has to fit. */
  promptSizes(): PromptSizes {
    return this.backbone().promptSizes();
  }

  /** The table of token vectors. */
  inputEmbedding(): Embedding {
    return this.backbone().inputEmbedding();
  }

  /** What each layer has for the tokens i32 [B, T], without a prompt. */
  keysAndValues(ids: Tensor): LayerPrefix[] {
    return this.backbone().keysAndValues(ids);
  }

  /** The options of a pass with the model's prompt in them. */
  protected prompted(options: EncoderOptions): EncoderOptions {
    const prompt = options.prompt ?? this.prompt?.pass();
    return prompt ? { ...options, prompt } : options;
  }
}

/**
 * A classifier of sequences. It reads the first position, as PEFT's do: with vectors of a prompt before
 * the tokens that is the first of these.
 */
export abstract class SequenceHead extends EncoderHead {
  /** The loss that problem_type names. Throws a `RangeError` where the labels do not fit it. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return sequenceLoss(this.forward(inputs, options), labels, this.config);
  }

  /** i32 [B, T] -> hidden states with those of a prompt's vectors first, [B, n + T, C]. */
  protected states(ids: Tensor, options: EncoderOptions): Tensor {
    return this.backbone().states(ids, this.prompted(options));
  }
}

/** A head with logits for each token. */
export abstract class TokenHead extends EncoderHead {
  /** Mean cross-entropy a label, in nats. Throws a `RangeError` where labels are not i32 [B, T]. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return tokenLoss(this.forward(inputs, options), labels);
  }

  /** i32 [B, T] -> hidden states of the tokens, [B, T, C]. */
  protected states(ids: Tensor, options: EncoderOptions): Tensor {
    return this.backbone().forward(ids, this.prompted(options));
  }
}

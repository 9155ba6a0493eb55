/**
 * Decoders with a classifier in place of their output layer: it reads each row's last token.
 *
 * @module
 */

import { normal, type Tensor, tensor } from "../../core/mod.ts";
import type { Embedding } from "../embedding.ts";
import { Linear } from "../linear.ts";
import { Parameter } from "../module.ts";
import { labelCount } from "./config_file.ts";
import type { CausalLM } from "./decoder.ts";
import type { ProblemType } from "./encoder_config.ts";
import { sequenceLoss } from "./encoder_heads.ts";
import { PretrainedModel } from "./pretrained_model.ts";
import type { PromptHost, PromptSizes, SoftPrompt } from "./prompt.ts";
import { sequenceLayout } from "./sequence_layout.ts";

/** What a classifier's configuration has beside its decoder's. */
export interface ClassifierConfig {
  /** How many numbers it gives; default: as many as id2label has names, or 2. */
  readonly num_labels?: number;
  /** What the labels are; default: regression for one, else what their dtype says. */
  readonly problem_type?: ProblemType | null;
}

/** Options of a classifier's pass. */
export interface ClassifierOptions {
  /** [B, T]: 1 where a token is, 0 where padding is, on either side; default: all are tokens. */
  readonly attentionMask?: Int32Array<ArrayBuffer>;
}

/**
 * A batch with labels, row-major: tokens [B, T], and labels i32 [B], or f32 [B] or [B, L] for regression,
 * or f32 [B, L] of 0 and 1 where several may hold.
 */
export interface ClassifierBatch extends ClassifierOptions {
  /** The tokens. */
  readonly inputs: Int32Array<ArrayBuffer>;
  /** The labels. */
  readonly labels: Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>;
  /** B and T. */
  readonly shape: readonly [batch: number, sequence: number];
}

/**
 * A classifier of sequences on a decoder, as Hugging Face's `...ForSequenceClassification`: `score` reads
 * the last token that is no padding. Hugging Face finds it as the last one that is not `pad_token_id`;
 * here the attention mask says it, so that padding may be the end token.
 */
export abstract class DecoderClassifier extends PretrainedModel implements PromptHost {
  /** A soft prompt before every input, or null. */
  prompt: SoftPrompt | null = null;
  /** Hidden state of the last token -> logits: [L, hidden], without bias. */
  score: Linear;
  readonly #language: CausalLM;
  readonly #config: CausalLM["config"] & { readonly num_labels: number } & ClassifierConfig;

  /** A fresh classifier on the decoder of `language`, whose output layer is left out. */
  constructor(config: Readonly<Record<string, unknown>> & ClassifierConfig, language: CausalLM) {
    super(config);
    const { hidden } = language.promptSizes();
    const count = labelCount(config);
    if (!Number.isInteger(count) || count < 1) {
      throw new RangeError(
        `${new.target.name}: num_labels must be a whole number from 1 on, is ${count}`,
      );
    }
    this.#language = language;
    this.#config = {
      ...language.config,
      tie_word_embeddings: config.tie_word_embeddings,
      num_labels: count,
    };
    const std = language.config.initializer_range as number;
    this.score = new Linear(hidden, count, {
      bias: false,
      weight: new Parameter(normal([count, hidden], { std })),
    });
  }

  /** The configuration, defaults filled in. */
  override get config(): CausalLM["config"] & { readonly num_labels: number } & ClassifierConfig {
    return this.#config;
  }

  /**
   * i32 [B, T] -> logits [B, L].
   *
   * Throws a `RangeError` where ids are not [B, T], or the mask does not fit them.
   */
  forward(ids: Tensor, options: ClassifierOptions = {}): Tensor {
    const layout = sequenceLayout(this.constructor.name, ids.shape, options.attentionMask);
    const prompt = this.prompt?.pass() ?? undefined;
    const hidden = this.#language.forward(ids, { ...layout.options, prompt }); // [B, T, hidden]
    const states = hidden.reshape(-1, hidden.shape[2]).take(layout.last); // [B, hidden]
    return this.score.forward(states);
  }

  /** The loss that problem_type names. Throws a `RangeError` where the labels do not fit it. */
  loss(batch: ClassifierBatch): Tensor {
    const { inputs, labels, shape } = batch;
    const each = labels.length / shape[0];
    const target = tensor(labels, { shape: each === 1 ? [shape[0]] : [shape[0], each] });
    return sequenceLoss(this.forward(tensor(inputs, { shape }), batch), target, this.config);
  }

  /** The decoder, whose output layer is not used. */
  decoder(): CausalLM {
    return this.#language;
  }

  /** Sizes that a soft prompt has to fit. */
  promptSizes(): PromptSizes {
    return this.#language.promptSizes();
  }

  /** The table of token vectors. */
  inputEmbedding(): Embedding {
    return this.#language.inputEmbedding();
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.score;
  }
}

/** The configuration of a decoder whose output layer is not used: tied, it takes no memory. */
export function headless<C extends object>(config: C): C {
  return { ...config, tie_word_embeddings: true };
}

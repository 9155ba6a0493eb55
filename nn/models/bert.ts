/**
 * BERT (Devlin et al. 2019) and its heads, under the names of Hugging Face: a field's path is its
 * checkpoint key.
 *
 * @module
 */

import type { Tensor } from "../../core/mod.ts";
import { activation } from "../activations.ts";
import { Dropout } from "../dropout.ts";
import { Linear } from "../linear.ts";
import { Module, type Parameter } from "../module.ts";
import { LayerNorm } from "../norm.ts";
import type { EncoderOptions } from "./encoder.ts";
import {
  type EncoderConfig,
  type ResolvedEncoderConfig,
  resolveEncoderConfig,
} from "./encoder_config.ts";
import { outputBias, tiedDecoder } from "./encoder_heads.ts";
import { EncoderModel, positionsFrom, SequenceHead, TokenHead } from "./encoder_model.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";
import type { PromptPass } from "./prompt.ts";

/** Sizes and settings of a BERT; the names are those of `config.json`. */
export type BertConfig = EncoderConfig;

const resolve = (config: BertConfig, source = "BertConfig"): ResolvedEncoderConfig =>
  resolveEncoderConfig(config, "bert", 0, source);

/** What a class says of its checkpoints; the pooler of one that has none is left out. */
function info(architecture: string, hasPooler: boolean): PretrainedInfo {
  return {
    architecture,
    modelType: "bert",
    base: "bert",
    // A table of 0, 1, ..., and the head for next sentences that comes with the one for masked tokens.
    ignored: hasPooler
      ? /(^|\.)embeddings\.position_ids$/
      : /(^|\.)embeddings\.position_ids$|^cls\.seq_relationship\.|^bert\.pooler\./,
    optional: /^(bert\.)?pooler\./,
    checkConfig: (config, source) => {
      resolve(config as unknown as BertConfig, source);
    },
  };
}

/**
 * The encoder: hidden states of all tokens, and one for the sequence.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { BertModel } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new BertModel({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * const hidden = model.forward(tensor([[1, 2, 3, 4]], { dtype: "i32" }));
 * console.log(hidden.shape, model.pooled(hidden).shape); // [1, 4, 16] [1, 16]
 * ```
 */
export class BertModel extends EncoderModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("BertModel", true);

  /** Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: BertConfig, hasPooler = true) {
    super(config, resolve(config), hasPooler);
  }

  /** The first. */
  protected override get firstPosition(): number {
    return 0;
  }

  /** A prefix takes rows of the table, too, but needs no vectors of them. */
  protected override positionsOf(ids: Tensor, prompt: PromptPass | undefined): Tensor {
    const [, t] = ids.shape;
    if (!prompt?.embeddings) return positionsFrom(prompt?.length ?? 0, t);
    return positionsFrom(0, prompt.length + t);
  }
}

/**
 * BERT with a classifier of sequences.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { BertForSequenceClassification } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new BertForSequenceClassification({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, num_labels: 3,
 * });
 * const loss = model.loss({
 *   inputs: Int32Array.of(1, 2, 3, 4, 5, 0),
 *   attentionMask: Int32Array.of(1, 1, 1, 1, 1, 0),
 *   labels: Int32Array.of(2, 0),
 *   shape: [2, 3],
 * });
 * loss.backward();
 * console.log(model.classifier.weight.grad!.shape); // [3, 16]
 * ```
 */
export class BertForSequenceClassification extends SequenceHead {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("BertForSequenceClassification", true);

  /** The encoder. */
  bert: BertModel;
  /** Before the classifier. */
  dropout: Dropout;
  /** [num_labels, C] */
  classifier: Linear;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: BertConfig) {
    super(config);
    this.bert = new BertModel(config);
    const { hidden_size, num_labels, classifier_dropout, initializer_range } = this.bert.config;
    this.dropout = new Dropout(classifier_dropout);
    this.classifier = new Linear(hidden_size, num_labels);
    this.initialize(initializer_range);
  }

  /** The encoder. */
  override backbone(): BertModel {
    return this.bert;
  }

  /** i32 [B, T] -> logits [B, num_labels] */
  override forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    const pooled = this.bert.pooled(this.states(ids, options)); // [B, C]
    return this.classifier.forward(this.dropout.forward(pooled));
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.classifier;
  }
}

/** BERT with a classifier of tokens. */
export class BertForTokenClassification extends TokenHead {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("BertForTokenClassification", false);

  /** The encoder. */
  bert: BertModel;
  /** Before the classifier. */
  dropout: Dropout;
  /** [num_labels, C] */
  classifier: Linear;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: BertConfig) {
    super(config);
    this.bert = new BertModel(config, false);
    const { hidden_size, num_labels, classifier_dropout, initializer_range } = this.bert.config;
    this.dropout = new Dropout(classifier_dropout);
    this.classifier = new Linear(hidden_size, num_labels);
    this.initialize(initializer_range);
  }

  /** The encoder. */
  override backbone(): BertModel {
    return this.bert;
  }

  /** i32 [B, T] -> logits [B, T, num_labels] */
  override forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.classifier.forward(this.dropout.forward(this.states(ids, options)));
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.classifier;
  }
}

/** The layers before the output of {@linkcode BertForMaskedLM}. */
export class BertPredictionTransform extends Module {
  /** [C, C] */
  dense: Linear;
  /** Of the activation. */
  LayerNorm: LayerNorm;
  readonly #act: (x: Tensor) => Tensor;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.dense = new Linear(config.hidden_size, config.hidden_size);
    this.LayerNorm = new LayerNorm(config.hidden_size, config.layer_norm_eps);
    this.#act = activation(config.hidden_act);
  }

  /** [B, T, C] -> [B, T, C] */
  forward(x: Tensor): Tensor {
    return this.LayerNorm.forward(this.#act(this.dense.forward(x)));
  }
}

/** The head of {@linkcode BertForMaskedLM}. */
export class BertPredictions extends Module {
  /** [V] */
  bias: Parameter;
  /** Before the output. */
  transform: BertPredictionTransform;
  /** [V, C], with the bias above. */
  decoder: Linear;

  /** Fresh weights, but for the embedding, which is the output's weight where they are tied. */
  constructor(config: ResolvedEncoderConfig, embedding: Parameter) {
    super();
    this.bias = outputBias(config);
    this.transform = new BertPredictionTransform(config);
    this.decoder = tiedDecoder(config, embedding, this.bias);
  }

  /** [B, T, C] -> [B, T, V] */
  forward(x: Tensor): Tensor {
    return this.decoder.forward(this.transform.forward(x));
  }
}

/** Holds the head's name. */
export class BertMaskedHead extends Module {
  /** The head. */
  predictions: BertPredictions;

  /** As {@linkcode BertPredictions}. */
  constructor(config: ResolvedEncoderConfig, embedding: Parameter) {
    super();
    this.predictions = new BertPredictions(config, embedding);
  }
}

/** BERT as a masked language model. */
export class BertForMaskedLM extends TokenHead {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("BertForMaskedLM", false);

  /** The encoder. */
  bert: BertModel;
  /** The head. */
  cls: BertMaskedHead;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: BertConfig) {
    super(config);
    this.bert = new BertModel(config, false);
    this.cls = new BertMaskedHead(
      this.bert.config,
      this.bert.embeddings.word_embeddings.weight,
    );
    this.initialize(this.bert.config.initializer_range);
  }

  /** The encoder. */
  override backbone(): BertModel {
    return this.bert;
  }

  /** i32 [B, T] -> logits [B, T, V] */
  override forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.cls.predictions.forward(this.states(ids, options));
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.cls.predictions.decoder;
  }
}

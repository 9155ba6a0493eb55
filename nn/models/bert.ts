/**
 * BERT (Devlin et al. 2019) and its heads, under the names of Hugging Face: a field's path is its
 * checkpoint key.
 *
 * @module
 */

import { type Tensor, tensor } from "../../core/mod.ts";
import { activation } from "../activations.ts";
import { Dropout } from "../dropout.ts";
import { Linear } from "../linear.ts";
import { Module, type Parameter } from "../module.ts";
import { LayerNorm } from "../norm.ts";
import {
  Encoder,
  EncoderEmbeddings,
  type EncoderOptions,
  EncoderPooler,
  encoderSizes,
} from "./encoder.ts";
import {
  type EncoderConfig,
  type ResolvedEncoderConfig,
  resolveEncoderConfig,
} from "./encoder_config.ts";
import {
  type EncoderBatch,
  encoderInputs,
  outputBias,
  sequenceLoss,
  tiedDecoder,
  tokenLoss,
} from "./encoder_heads.ts";
import { type PretrainedInfo, PretrainedModel } from "./pretrained_model.ts";

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
export class BertModel extends PretrainedModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("BertModel", true);

  /** Of tokens. */
  embeddings: EncoderEmbeddings;
  /** The layers. */
  encoder: Encoder;
  /** For the first token; null where a head does without. */
  pooler: EncoderPooler | null;
  readonly #config: ResolvedEncoderConfig;

  /**
   * Fresh weights, N(0, initializer_range), as Hugging Face's.
   *
   * Throws a `TypeError` or `RangeError` that names the setting at fault.
   */
  constructor(config: BertConfig, hasPooler = true) {
    super(config);
    const resolved = resolve(config);
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

  /**
   * i32 [B, T] -> the last hidden states, [B, T, C].
   *
   * Throws a `RangeError` where ids are not [B, T], or there are more than max_position_embeddings.
   */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    const [, t] = encoderSizes("BertModel", ids, this.#config.max_position_embeddings);
    const positions = tensor(Int32Array.from({ length: t }, (_, i) => i)); // [T]
    const x = this.embeddings.forward(ids, positions, options.tokenTypes); // [B, T, C]
    return this.encoder.forward(x, options.attentionMask);
  }

  /** Hidden states [B, T, C] -> one for each sequence, [B, C]. Throws where there is no pooler. */
  pooled(hidden: Tensor): Tensor {
    if (!this.pooler) throw new TypeError("BertModel: this one has no pooler");
    return this.pooler.forward(hidden);
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
export class BertForSequenceClassification extends PretrainedModel {
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

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.bert.config;
  }

  /** i32 [B, T] -> logits [B, num_labels] */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    const pooled = this.bert.pooled(this.bert.forward(ids, options)); // [B, C]
    return this.classifier.forward(this.dropout.forward(pooled));
  }

  /** The loss that problem_type names. Throws a `RangeError` where the labels do not fit it. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return sequenceLoss(this.forward(inputs, options), labels, this.config);
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.classifier;
  }
}

/** BERT with a classifier of tokens. */
export class BertForTokenClassification extends PretrainedModel {
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

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.bert.config;
  }

  /** i32 [B, T] -> logits [B, T, num_labels] */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.classifier.forward(this.dropout.forward(this.bert.forward(ids, options)));
  }

  /** Mean cross-entropy a label, in nats. Throws a `RangeError` where labels are not i32 [B, T]. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return tokenLoss(this.forward(inputs, options), labels);
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
export class BertForMaskedLM extends PretrainedModel {
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

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.bert.config;
  }

  /** i32 [B, T] -> logits [B, T, V] */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.cls.predictions.forward(this.bert.forward(ids, options));
  }

  /** Mean cross-entropy a label, in nats. Throws a `RangeError` where labels are not i32 [B, T]. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return tokenLoss(this.forward(inputs, options), labels);
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.cls.predictions.decoder;
  }
}

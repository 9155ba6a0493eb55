/**
 * RoBERTa (Liu et al. 2019) and its heads, under the names of Hugging Face: BERT's encoder, positions
 * counted from the padding token, and other heads.
 *
 * @module
 */

import type { Tensor } from "../../core/mod.ts";
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

/** Sizes and settings of a RoBERTa; the names are those of `config.json`. */
export type RobertaConfig = EncoderConfig;

const resolve = (config: RobertaConfig, source = "RobertaConfig"): ResolvedEncoderConfig =>
  resolveEncoderConfig(config, "roberta", 1, source);

/** What a class says of its checkpoints; the pooler of one that has none is left out. */
function info(architecture: string, hasPooler: boolean): PretrainedInfo {
  return {
    architecture,
    modelType: "roberta",
    base: "roberta",
    // A table of 0, 1, ...
    ignored: hasPooler
      ? /(^|\.)embeddings\.position_ids$/
      : /(^|\.)embeddings\.position_ids$|^roberta\.pooler\./,
    optional: /^(roberta\.)?pooler\./,
    checkConfig: (config, source) => {
      resolve(config as unknown as RobertaConfig, source);
    },
  };
}

/** The encoder: hidden states of all tokens, and one for the sequence. */
export class RobertaModel extends PretrainedModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("RobertaModel", true);

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
  constructor(config: RobertaConfig, hasPooler = true) {
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
   * Throws a `RangeError` where ids are not [B, T], or there are more than the table of positions holds
   * after those up to the padding token's.
   */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    const { pad_token_id: pad, max_position_embeddings: rows } = this.#config;
    encoderSizes("RobertaModel", ids, rows - pad - 1);
    // Padding stands at pad, the tokens at pad + 1, pad + 2, ...
    const is = ids.ne(pad).to("i32"); // [B, T]
    const positions = is.cumsum(1).mul(is).add(pad); // [B, T]
    const x = this.embeddings.forward(ids, positions, options.tokenTypes); // [B, T, C]
    return this.encoder.forward(x, options.attentionMask);
  }

  /** Hidden states [B, T, C] -> one for each sequence, [B, C]. Throws where there is no pooler. */
  pooled(hidden: Tensor): Tensor {
    if (!this.pooler) throw new TypeError("RobertaModel: this one has no pooler");
    return this.pooler.forward(hidden);
  }
}

/** The classifier of {@linkcode RobertaForSequenceClassification}: two layers over the first token. */
export class RobertaClassificationHead extends Module {
  /** [C, C] */
  dense: Linear;
  /** Before each layer. */
  dropout: Dropout;
  /** [num_labels, C] */
  out_proj: Linear;

  /** Fresh weights. */
  constructor(config: ResolvedEncoderConfig) {
    super();
    this.dense = new Linear(config.hidden_size, config.hidden_size);
    this.dropout = new Dropout(config.classifier_dropout);
    this.out_proj = new Linear(config.hidden_size, config.num_labels);
  }

  /** [B, T, C] -> [B, num_labels] */
  forward(hidden: Tensor): Tensor {
    const first = this.dropout.forward(hidden.select(1, 0)); // [B, C]
    return this.out_proj.forward(this.dropout.forward(this.dense.forward(first).tanh()));
  }
}

/** RoBERTa with a classifier of sequences. */
export class RobertaForSequenceClassification extends PretrainedModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("RobertaForSequenceClassification", false);

  /** The encoder. */
  roberta: RobertaModel;
  /** The head. */
  classifier: RobertaClassificationHead;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: RobertaConfig) {
    super(config);
    this.roberta = new RobertaModel(config, false);
    this.classifier = new RobertaClassificationHead(this.roberta.config);
    this.initialize(this.roberta.config.initializer_range);
  }

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.roberta.config;
  }

  /** i32 [B, T] -> logits [B, num_labels] */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.classifier.forward(this.roberta.forward(ids, options));
  }

  /** The loss that problem_type names. Throws a `RangeError` where the labels do not fit it. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return sequenceLoss(this.forward(inputs, options), labels, this.config);
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.classifier.out_proj;
  }
}

/** RoBERTa with a classifier of tokens. */
export class RobertaForTokenClassification extends PretrainedModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("RobertaForTokenClassification", false);

  /** The encoder. */
  roberta: RobertaModel;
  /** Before the classifier. */
  dropout: Dropout;
  /** [num_labels, C] */
  classifier: Linear;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: RobertaConfig) {
    super(config);
    this.roberta = new RobertaModel(config, false);
    const { hidden_size, num_labels, classifier_dropout, initializer_range } = this.config;
    this.dropout = new Dropout(classifier_dropout);
    this.classifier = new Linear(hidden_size, num_labels);
    this.initialize(initializer_range);
  }

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.roberta.config;
  }

  /** i32 [B, T] -> logits [B, T, num_labels] */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.classifier.forward(this.dropout.forward(this.roberta.forward(ids, options)));
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

/** The head of {@linkcode RobertaForMaskedLM}. */
export class RobertaLMHead extends Module {
  /** [C, C] */
  dense: Linear;
  /** Of the activation. */
  layer_norm: LayerNorm;
  /** [V] */
  bias: Parameter;
  /** [V, C], with the bias above. */
  decoder: Linear;

  /** Fresh weights, but for the embedding, which is the output's weight where they are tied. */
  constructor(config: ResolvedEncoderConfig, embedding: Parameter) {
    super();
    this.dense = new Linear(config.hidden_size, config.hidden_size);
    this.layer_norm = new LayerNorm(config.hidden_size, config.layer_norm_eps);
    this.bias = outputBias(config);
    this.decoder = tiedDecoder(config, embedding, this.bias);
  }

  /** [B, T, C] -> [B, T, V]; the activation is gelu whatever hidden_act says. */
  forward(x: Tensor): Tensor {
    return this.decoder.forward(this.layer_norm.forward(this.dense.forward(x).gelu()));
  }
}

/** RoBERTa as a masked language model. */
export class RobertaForMaskedLM extends PretrainedModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("RobertaForMaskedLM", false);

  /** The encoder. */
  roberta: RobertaModel;
  /** The head. */
  lm_head: RobertaLMHead;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: RobertaConfig) {
    super(config);
    this.roberta = new RobertaModel(config, false);
    const { word_embeddings } = this.roberta.embeddings;
    this.lm_head = new RobertaLMHead(this.roberta.config, word_embeddings.weight);
    this.initialize(this.roberta.config.initializer_range);
  }

  /** The configuration, defaults filled in. */
  override get config(): ResolvedEncoderConfig {
    return this.roberta.config;
  }

  /** i32 [B, T] -> logits [B, T, V] */
  forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.lm_head.forward(this.roberta.forward(ids, options));
  }

  /** Mean cross-entropy a label, in nats. Throws a `RangeError` where labels are not i32 [B, T]. */
  loss(batch: EncoderBatch): Tensor {
    const { inputs, labels, options } = encoderInputs(batch);
    return tokenLoss(this.forward(inputs, options), labels);
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.lm_head.decoder;
  }
}

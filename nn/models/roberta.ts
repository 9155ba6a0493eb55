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
export class RobertaModel extends EncoderModel {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = info("RobertaModel", true);

  /** Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: RobertaConfig, hasPooler = true) {
    super(config, resolve(config), hasPooler);
  }

  /** Padding stands at pad_token_id, the tokens from the next on. */
  protected override get firstPosition(): number {
    return this.config.pad_token_id + 1;
  }

  /** Of padding that of the padding token, of the others one after the other. */
  protected override positionsOf(ids: Tensor, prompt: PromptPass | undefined): Tensor {
    const n = prompt?.length ?? 0;
    // With vectors before them padding is counted like tokens, as Hugging Face does.
    if (prompt?.embeddings) return positionsFrom(this.firstPosition, n + ids.shape[1]);
    const { pad_token_id: pad } = this.config;
    const is = ids.ne(pad).to("i32"); // [B, T]
    return is.cumsum(1).add(n).mul(is).add(pad); // [B, T]
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
export class RobertaForSequenceClassification extends SequenceHead {
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

  /** The encoder. */
  override backbone(): RobertaModel {
    return this.roberta;
  }

  /** i32 [B, T] -> logits [B, num_labels] */
  override forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.classifier.forward(this.states(ids, options));
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.classifier.out_proj;
  }
}

/** RoBERTa with a classifier of tokens. */
export class RobertaForTokenClassification extends TokenHead {
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

  /** The encoder. */
  override backbone(): RobertaModel {
    return this.roberta;
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
export class RobertaForMaskedLM extends TokenHead {
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

  /** The encoder. */
  override backbone(): RobertaModel {
    return this.roberta;
  }

  /** i32 [B, T] -> logits [B, T, V] */
  override forward(ids: Tensor, options: EncoderOptions = {}): Tensor {
    return this.lm_head.forward(this.states(ids, options));
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.lm_head.decoder;
  }
}

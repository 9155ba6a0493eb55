/**
 * The decoders as classifiers of sequences, under the names of Hugging Face: a field's path is its
 * checkpoint key.
 *
 * @module
 */

import { type ClassifierConfig, DecoderClassifier, headless } from "./decoder_classifier.ts";
import { type GPT2Config, GPT2LMHeadModel, type GPT2Model } from "./gpt2.ts";
import { LlamaForCausalLM, type LlamaModel } from "./llama.ts";
import type { LlamaConfig } from "./llama_config.ts";
import { type MistralConfig, MistralForCausalLM } from "./mistral.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";
import { type Qwen2Config, Qwen2ForCausalLM } from "./qwen2.ts";
import { type Qwen3Config, Qwen3ForCausalLM } from "./qwen3.ts";

/**
 * Llama as a classifier, or with one label as a reward model.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { LlamaForSequenceClassification } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForSequenceClassification({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, num_labels: 3,
 * });
 * const ids = tensor([[1, 2, 3, 4], [5, 6, 0, 0]], { dtype: "i32" });
 * const attentionMask = Int32Array.of(1, 1, 1, 1, 1, 1, 0, 0);
 * console.log(model.forward(ids, { attentionMask }).shape); // [2, 3]
 * ```
 */
export class LlamaForSequenceClassification extends DecoderClassifier {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = classifierInfo(
    LlamaForCausalLM.pretrained,
    "LlamaForSequenceClassification",
  );

  /** The decoder. */
  model: LlamaModel;

  /**
   * Fresh weights, N(0, initializer_range), as Hugging Face's; `language` gives the decoder.
   *
   * Throws a `TypeError` or `RangeError` that names the setting at fault.
   */
  constructor(
    config: LlamaConfig & ClassifierConfig,
    language: LlamaForCausalLM = new LlamaForCausalLM(headless(config)),
  ) {
    super(config, language);
    this.model = language.model;
  }
}

/** Mistral as a classifier. */
export class MistralForSequenceClassification extends LlamaForSequenceClassification {
  /** Its checkpoints. */
  static override readonly pretrained: PretrainedInfo = classifierInfo(
    MistralForCausalLM.pretrained,
    "MistralForSequenceClassification",
  );

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: MistralConfig & ClassifierConfig) {
    super(config, new MistralForCausalLM(headless(config)));
  }
}

/** Qwen2 as a classifier. */
export class Qwen2ForSequenceClassification extends LlamaForSequenceClassification {
  /** Its checkpoints. */
  static override readonly pretrained: PretrainedInfo = classifierInfo(
    Qwen2ForCausalLM.pretrained,
    "Qwen2ForSequenceClassification",
  );

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: Qwen2Config & ClassifierConfig) {
    super(config, new Qwen2ForCausalLM(headless(config)));
  }
}

/** Qwen3 as a classifier. */
export class Qwen3ForSequenceClassification extends LlamaForSequenceClassification {
  /** Its checkpoints. */
  static override readonly pretrained: PretrainedInfo = classifierInfo(
    Qwen3ForCausalLM.pretrained,
    "Qwen3ForSequenceClassification",
  );

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: Qwen3Config & ClassifierConfig) {
    super(config, new Qwen3ForCausalLM(headless(config)));
  }
}

/** GPT-2 as a classifier. */
export class GPT2ForSequenceClassification extends DecoderClassifier {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = classifierInfo(
    GPT2LMHeadModel.pretrained,
    "GPT2ForSequenceClassification",
  );

  /** The decoder. */
  transformer: GPT2Model;

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: GPT2Config & ClassifierConfig) {
    const language = new GPT2LMHeadModel(headless(config));
    super(config, language);
    this.transformer = language.transformer;
  }
}

/** What a classifier says of its checkpoints: what its decoder does, under another name. */
function classifierInfo(info: PretrainedInfo, architecture: string): PretrainedInfo {
  return { ...info, architecture };
}

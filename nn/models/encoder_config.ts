/**
 * The configuration of BERT and RoBERTa, as `config.json` of Hugging Face has it.
 *
 * @module
 */

import { activation } from "../activations.ts";
import {
  checkAbsent,
  checkHeads,
  checkModelType,
  checkProbabilities,
  checkSizes,
} from "./checks.ts";
import { labelCount } from "./config_file.ts";

/** What a sequence's labels are. */
export type ProblemType =
  | "regression"
  | "single_label_classification"
  | "multi_label_classification";

/** Sizes and settings of an encoder; the names are those of `config.json`. */
export interface EncoderConfig {
  /** Tokens in the vocabulary. */
  readonly vocab_size: number;
  /** Size of the hidden states. */
  readonly hidden_size: number;
  /** Inner size of the feed-forward layers. */
  readonly intermediate_size: number;
  /** Layers. */
  readonly num_hidden_layers: number;
  /** Heads of attention. */
  readonly num_attention_heads: number;
  /** Rows of the table of positions. Default 512. */
  readonly max_position_embeddings?: number;
  /** Kinds of tokens: first and second sentence. Default 2. */
  readonly type_vocab_size?: number;
  /** Between the feed-forward layers. Default "gelu", which is exact. */
  readonly hidden_act?: string;
  /** Dropout of embeddings and before residuals. Default 0.1. */
  readonly hidden_dropout_prob?: number;
  /** Dropout of attention's weights. Default 0.1. */
  readonly attention_probs_dropout_prob?: number;
  /** Dropout before the classifier; default: hidden_dropout_prob. */
  readonly classifier_dropout?: number | null;
  /** Default 1e-12. */
  readonly layer_norm_eps?: number;
  /** Standard deviation of a fresh model's weights. Default 0.02. */
  readonly initializer_range?: number;
  /** The token that fills up a batch. Default: BERT 0, RoBERTa 1. */
  readonly pad_token_id?: number | null;
  /** Whether a masked language model's output layer is the embedding. Default true. */
  readonly tie_word_embeddings?: boolean;
  /** How many numbers a classifier gives; default: as many as id2label has names, or 2. */
  readonly num_labels?: number;
  /** Names of the labels. */
  readonly id2label?: Readonly<Record<string, string>>;
  /** What the labels of sequences are; default: regression for one, else what their dtype says. */
  readonly problem_type?: ProblemType | null;
  /** What else `config.json` holds. */
  readonly [key: string]: unknown;
}

/** A configuration with nothing left open. */
export type ResolvedEncoderConfig =
  & EncoderConfig
  & { readonly pad_token_id: number; readonly classifier_dropout: number }
  & Required<
    Pick<
      EncoderConfig,
      | "max_position_embeddings"
      | "type_vocab_size"
      | "hidden_act"
      | "hidden_dropout_prob"
      | "attention_probs_dropout_prob"
      | "layer_norm_eps"
      | "initializer_range"
      | "tie_word_embeddings"
      | "num_labels"
    >
  >;

/**
 * Fills in Hugging Face's defaults and checks the sizes; `family` is the model_type, `pad` its default
 * padding.
 *
 * Throws a `TypeError` or `RangeError` that names the key at fault.
 */
export function resolveEncoderConfig(
  config: EncoderConfig,
  family: string,
  pad: number,
  source: string,
): ResolvedEncoderConfig {
  checkModelType(config.model_type, family, source);
  const dropout = config.hidden_dropout_prob ?? 0.1;
  const resolved = {
    ...config,
    max_position_embeddings: config.max_position_embeddings ?? 512,
    type_vocab_size: config.type_vocab_size ?? 2,
    hidden_act: config.hidden_act ?? "gelu",
    hidden_dropout_prob: dropout,
    attention_probs_dropout_prob: config.attention_probs_dropout_prob ?? 0.1,
    classifier_dropout: config.classifier_dropout ?? dropout,
    layer_norm_eps: config.layer_norm_eps ?? 1e-12,
    initializer_range: config.initializer_range ?? 0.02,
    pad_token_id: config.pad_token_id ?? pad,
    tie_word_embeddings: config.tie_word_embeddings ?? true,
    num_labels: labelCount(config),
  };
  checkSizes(
    resolved,
    [
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_hidden_layers",
      "num_attention_heads",
      "max_position_embeddings",
      "type_vocab_size",
      "num_labels",
    ],
    source,
  );
  checkHeads(resolved, "hidden_size", "num_attention_heads", source);
  checkProbabilities(
    resolved,
    ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"],
    source,
  );
  checkAbsent(resolved, ["is_decoder", "add_cross_attention"], source);
  activation(resolved.hidden_act, `${source}: hidden_act`);
  const { position_embedding_type: positions = "absolute", problem_type: problem } = config;
  if (positions !== "absolute") {
    throw new TypeError(
      `${source}: needs position_embedding_type "absolute", has ${JSON.stringify(positions)}`,
    );
  }
  const problems = ["regression", "single_label_classification", "multi_label_classification"];
  if (problem != null && !problems.includes(problem)) {
    throw new TypeError(
      `${source}: problem_type must be one of ${problems.join(", ")} or null, is ${
        JSON.stringify(problem)
      }`,
    );
  }
  return resolved;
}

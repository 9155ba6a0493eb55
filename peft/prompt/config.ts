/**
 * Settings of soft prompts, as PEFT's `adapter_config.json` has them.
 *
 * @module
 */

import type { PromptSizes } from "../../nn/mod.ts";
import { asWritten } from "../config_text.ts";

/** What the three methods share. Names are PEFT's. */
export interface PromptBaseConfig {
  /** Virtual tokens before every input. */
  readonly num_virtual_tokens: number;
  /** Where the base model came from: a folder or a name; only for those who read the file. */
  readonly base_model_name_or_path?: string | null;
  /** Such as "CAUSAL_LM". With "SEQ_CLS" or "TOKEN_CLS" a copy of the classifier is trained too. */
  readonly task_type?: string | null;
  /** Modules, named as they are or by their ending after a dot, that are trained too. Default none. */
  readonly modules_to_save?: readonly string[] | null;
  /** What else the file held; written back as it was. */
  readonly [key: string]: unknown;
}

/** Settings of prompt tuning (Lester et al. 2021): trained vectors before the input. */
export interface PromptTuningConfig extends PromptBaseConfig {
  /** The method. */
  readonly peft_type: "PROMPT_TUNING";
  /**
   * How the vectors start: as N(0, 1), as those of tokens drawn from the vocabulary, or as those of a
   * text. Default "SAMPLE_VOCAB"; PEFT's default, "RANDOM", learns much worse.
   */
  readonly prompt_tuning_init?: "RANDOM" | "SAMPLE_VOCAB" | "TEXT";
  /** The text of "TEXT". Its tokens are an option of `injectPrompt`. */
  readonly prompt_tuning_init_text?: string | null;
  /** Which tokenizer made its tokens; PEFT needs it with "TEXT". Default: the base model's. */
  readonly tokenizer_name_or_path?: string | null;
}

/** Settings of prefix tuning (Li and Liang 2021), which is P-tuning v2 (Liu et al. 2021). */
export interface PrefixTuningConfig extends PromptBaseConfig {
  /** The method. */
  readonly peft_type: "PREFIX_TUNING";
  /** Whether keys and values come from vectors through two linear layers and tanh. Default false. */
  readonly prefix_projection?: boolean;
  /** Size between the two layers. Default: that of a block's keys. */
  readonly encoder_hidden_size?: number | null;
  /** "zero": keys and values start as 0. Null: as `injectPrompt`'s option `start` says. Default null. */
  readonly init_weights?: "zero" | null;
}

/** Settings of P-tuning v1 (Liu et al. 2021, "GPT understands, too"): vectors from a small network. */
export interface PromptEncoderConfig extends PromptBaseConfig {
  /** The method. */
  readonly peft_type: "P_TUNING";
  /** Three linear layers, or an LSTM in both directions and two linear layers. Default "MLP". */
  readonly encoder_reparameterization_type?: "MLP" | "LSTM";
  /** Size within the network. Default: that of an input vector. */
  readonly encoder_hidden_size?: number | null;
  /** Layers of the LSTM. Default 2. */
  readonly encoder_num_layers?: number;
  /** Dropout between the LSTM's layers. Default 0. */
  readonly encoder_dropout?: number;
}

/** Settings of a soft prompt. `peft_type` says of which method. */
export type PromptConfig = PromptTuningConfig | PrefixTuningConfig | PromptEncoderConfig;

/** A configuration with nothing left open, which {@linkcode resolvePromptConfig} makes. */
export type ResolvedPromptConfig = PromptConfig & {
  /** Blocks of the base model. */
  readonly num_layers: number;
  /** Heads of queries; for a prefix those of keys and values. */
  readonly num_attention_heads: number;
  /** Size of an input vector; for a prefix that of a block's keys. */
  readonly token_dim: number;
};

/** Every key that PEFT writes for all of them, with its default. */
const SHARED: Readonly<Record<string, unknown>> = {
  auto_mapping: null,
  base_model_name_or_path: null,
  inference_mode: true,
  modules_to_save: null,
  num_attention_heads: null,
  num_layers: null,
  num_transformer_submodules: 1,
  num_virtual_tokens: null,
  peft_version: "0.21.2",
  revision: null,
  task_type: null,
  token_dim: null,
};

/** The methods, with the keys that PEFT writes for each. */
const DEFAULTS: Readonly<Record<PromptConfig["peft_type"], Readonly<Record<string, unknown>>>> = {
  PROMPT_TUNING: {
    ...SHARED,
    peft_type: "PROMPT_TUNING",
    prompt_tuning_init: "SAMPLE_VOCAB",
    prompt_tuning_init_text: null,
    tokenizer_kwargs: null,
    tokenizer_name_or_path: null,
  },
  PREFIX_TUNING: {
    ...SHARED,
    encoder_hidden_size: null,
    init_weights: null,
    peft_type: "PREFIX_TUNING",
    prefix_projection: false,
  },
  P_TUNING: {
    ...SHARED,
    encoder_dropout: 0,
    encoder_hidden_size: null,
    encoder_num_layers: 2,
    encoder_reparameterization_type: "MLP",
    peft_type: "P_TUNING",
  },
};

/** Whether `peft_type` is that of a soft prompt. */
export function isPromptType(type: unknown): type is PromptConfig["peft_type"] {
  return typeof type === "string" && Object.hasOwn(DEFAULTS, type);
}

/** The sizes that PEFT writes for a base model. */
function written(type: PromptConfig["peft_type"], sizes: PromptSizes): Record<string, number> {
  const { layers, heads, headDim, hidden, queryHeads } = sizes;
  return type === "PREFIX_TUNING"
    ? { num_layers: layers, num_attention_heads: heads, token_dim: heads * headDim }
    : { num_layers: layers, num_attention_heads: queryHeads, token_dim: hidden };
}

/**
 * Fills in defaults and the sizes of the base model, and checks every setting. Unknown keys are kept,
 * and told to `warn`.
 *
 * Throws a `TypeError` or `RangeError` that names the key at fault, the feature that is not built, or
 * everything in which the base model is another.
 *
 * @example
 * ```ts
 * import { resolvePromptConfig } from "@graft/ml/peft";
 *
 * const config = resolvePromptConfig(
 *   { peft_type: "PREFIX_TUNING", num_virtual_tokens: 8 },
 *   { hidden: 32, layers: 2, queryHeads: 4, heads: 2, headDim: 8, positions: 64 },
 * );
 * console.log(config.token_dim); // 16
 * ```
 */
export function resolvePromptConfig(
  config: PromptConfig,
  sizes: PromptSizes,
  source = "PromptConfig",
  warn: (message: string) => void = console.warn,
): ResolvedPromptConfig {
  const { peft_type: type } = config;
  if (!isPromptType(type)) {
    throw new TypeError(
      `${source}: peft_type must be ${Object.keys(DEFAULTS).join(", ")}, is ${
        JSON.stringify(type)
      }`,
    );
  }
  const defaults = DEFAULTS[type];
  const unknown = Object.keys(config).filter((key) => !Object.hasOwn(defaults, key));
  if (unknown.length > 0) {
    warn(`${source}: unknown keys are kept but not used: ${unknown.join(", ")}`);
  }
  const given = Object.entries(config).filter(([, value]) => value !== undefined);
  const all = { ...defaults, ...Object.fromEntries(given) } as Record<string, unknown>;
  all.num_transformer_submodules ??= 1;
  all.encoder_num_layers ??= defaults.encoder_num_layers;

  const other: string[] = [];
  for (const [key, value] of Object.entries(written(type, sizes))) {
    all[key] ??= value;
    if (all[key] !== value) {
      other.push(`${key} is ${JSON.stringify(all[key])}, the model's is ${value}`);
    }
  }
  if (other.length > 0) {
    throw new RangeError(`${source}: it is for another base model: ${other.join("; ")}`);
  }
  // PEFT fills it in for every method that has the key.
  if ("encoder_hidden_size" in defaults) all.encoder_hidden_size ??= all.token_dim;

  const need = (key: string, holds: boolean, what: string): void => {
    if (!holds) {
      throw new RangeError(`${source}: ${key} must be ${what}, is ${JSON.stringify(all[key])}`);
    }
  };
  const isCount = (value: unknown): value is number =>
    Number.isInteger(value) && (value as number) >= 1;
  const isOneOf = (key: string, ...values: unknown[]): void =>
    need(key, values.includes(all[key]), values.map((v) => JSON.stringify(v)).join(" or "));
  const { num_virtual_tokens: n } = all;
  need("num_virtual_tokens", isCount(n), "a whole number from 1 on");
  need(
    "num_virtual_tokens",
    (n as number) < sizes.positions,
    `below the model's ${sizes.positions} positions`,
  );
  need("num_transformer_submodules", all.num_transformer_submodules === 1, "1");
  const { modules_to_save: saved } = all;
  need(
    "modules_to_save",
    saved === null || (Array.isArray(saved) && saved.every((name) => typeof name === "string")),
    "a list of names or null",
  );
  if (type === "PROMPT_TUNING") {
    isOneOf("prompt_tuning_init", "RANDOM", "SAMPLE_VOCAB", "TEXT");
    if (all.prompt_tuning_init === "TEXT") {
      all.tokenizer_name_or_path ??= all.base_model_name_or_path;
      const named = typeof all.tokenizer_name_or_path === "string";
      need("prompt_tuning_init_text", typeof all.prompt_tuning_init_text === "string", "a text");
      need("tokenizer_name_or_path", named, "named, since PEFT needs it with TEXT");
    }
  } else {
    need("encoder_hidden_size", isCount(all.encoder_hidden_size), "a whole number from 1 on");
  }
  if (type === "PREFIX_TUNING") {
    isOneOf("prefix_projection", true, false);
    isOneOf("init_weights", "zero", null);
  }
  if (type === "P_TUNING") {
    isOneOf("encoder_reparameterization_type", "MLP", "LSTM");
    need("encoder_num_layers", isCount(all.encoder_num_layers), "a whole number from 1 on");
    const p = all.encoder_dropout;
    need("encoder_dropout", typeof p === "number" && p >= 0 && p < 1, "a number in [0, 1)");
  }
  return asWritten(config, all) as unknown as ResolvedPromptConfig;
}

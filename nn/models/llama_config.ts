/**
 * The configuration of Llama and its relatives, as `config.json` of Hugging Face has it.
 *
 * @module
 */

import { checkModelType, checkProbabilities, checkSizes } from "./checks.ts";

/** Rotary frequencies stretched for longer contexts. */
export type RopeScaling =
  | {
    /** Every frequency is divided by the factor. */
    readonly rope_type: "linear";
    /** How many times longer the context gets. */
    readonly factor: number;
  }
  | {
    /** Slow pairs are stretched and fast ones left alone, as Llama 3.1 does. */
    readonly rope_type: "llama3";
    /** How many times longer the context gets. */
    readonly factor: number;
    /** Pairs that turn around fewer times in the original context are stretched by the whole factor. */
    readonly low_freq_factor: number;
    /** Pairs that turn around more often are left alone. */
    readonly high_freq_factor: number;
    /** The original context, in tokens. */
    readonly original_max_position_embeddings: number;
  };

/** Sizes and settings of a Llama; the names are those of `config.json`. */
export interface LlamaConfig {
  /** Tokens in the vocabulary. */
  readonly vocab_size: number;
  /** Size of the hidden states. */
  readonly hidden_size: number;
  /** Inner size of the feed-forward layers. */
  readonly intermediate_size: number;
  /** Blocks. */
  readonly num_hidden_layers: number;
  /** Heads of queries in each block. */
  readonly num_attention_heads: number;
  /** Heads of keys and values; default: as many as of queries. */
  readonly num_key_value_heads?: number;
  /** Size of a head, even. Default: hidden_size / num_attention_heads. */
  readonly head_dim?: number;
  /** Longest sequence, in tokens. Default 2048. */
  readonly max_position_embeddings?: number;
  /** ε of the norms. Default 1e-6. */
  readonly rms_norm_eps?: number;
  /** Base of the rotary frequencies. Default 10000. */
  readonly rope_theta?: number;
  /** How the rotary frequencies are stretched for longer contexts. Default: not at all. */
  readonly rope_scaling?: RopeScaling | null;
  /** Whether the output layer is the embedding. Default false. */
  readonly tie_word_embeddings?: boolean;
  /** Whether the four projections of attention have a bias. Default false. */
  readonly attention_bias?: boolean;
  /** Probability with which a weight of attention is 0 in training. Default 0. */
  readonly attention_dropout?: number;
  /** Whether the feed-forward layers have a bias. Default false. */
  readonly mlp_bias?: boolean;
  /** Standard deviation of a fresh model's weights. Default 0.02. */
  readonly initializer_range?: number;
  /** The token that begins a text. */
  readonly bos_token_id?: number | null;
  /** The tokens that end one: generation stops there. */
  readonly eos_token_id?: number | readonly number[] | null;
  /** The token that fills up a batch. */
  readonly pad_token_id?: number | null;
  /** What else `config.json` holds. */
  readonly [key: string]: unknown;
}

/** In what the blocks of Llama's relatives differ. */
export interface LlamaTraits {
  /** Whether the projections to queries, keys and values have a bias. */
  readonly inputBias: boolean;
  /** Whether the projection after attention has one. */
  readonly outputBias: boolean;
  /** Whether each head of queries and keys is normalised. */
  readonly headNorms: boolean;
  /** For each layer, how many positions up to its own a query sees; 0: all. */
  readonly windows: readonly number[];
}

/** A model that is Llama but for its settings. */
export interface LlamaFamily {
  /** As `model_type` names it. */
  readonly modelType: string;
  /** What a configuration leaves open, where it is not as Llama has it. */
  readonly defaults: Partial<LlamaConfig>;
  /** The traits of a configuration whose defaults are filled in. */
  traits(config: FilledLlamaConfig, source: string): LlamaTraits;
}

/** Llama itself. */
export const llamaFamily: LlamaFamily = {
  modelType: "llama",
  defaults: {},
  traits: ({ attention_bias, num_hidden_layers }) => ({
    inputBias: attention_bias,
    outputBias: attention_bias,
    headNorms: false,
    windows: Array(num_hidden_layers).fill(0),
  }),
};

/** A configuration with nothing left open. */
export type ResolvedLlamaConfig = FilledLlamaConfig & { readonly traits: LlamaTraits };

/** A configuration whose defaults are filled in. */
export type FilledLlamaConfig =
  & LlamaConfig
  & Required<
    Pick<
      LlamaConfig,
      | "num_key_value_heads"
      | "head_dim"
      | "max_position_embeddings"
      | "rms_norm_eps"
      | "rope_theta"
      | "rope_scaling"
      | "tie_word_embeddings"
      | "attention_bias"
      | "attention_dropout"
      | "mlp_bias"
      | "initializer_range"
    >
  >;

/**
 * Fills in Hugging Face's defaults and checks the sizes. Takes a parsed `config.json`, of transformers
 * 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).
 *
 * Throws a `TypeError` or `RangeError` that names the key at fault.
 */
export function resolveLlamaConfig(
  given: LlamaConfig,
  source = "LlamaConfig",
  family: LlamaFamily = llamaFamily,
): ResolvedLlamaConfig {
  const { modelType } = family;
  const config: LlamaConfig = { ...family.defaults, ...given };
  checkModelType(config.model_type, modelType, source);
  const act = config.hidden_act ?? "silu";
  if (act !== "silu") {
    throw new TypeError(`${source}: needs hidden_act "silu", has ${JSON.stringify(act)}`);
  }
  // transformers 5 holds both rotary settings in one object.
  const rope = config.rope_parameters as Record<string, unknown> | null | undefined;
  if ((rope?.partial_rotary_factor ?? 1) !== 1) {
    throw new TypeError(`${source}: needs rope_parameters without partial_rotary_factor`);
  }
  const resolved = {
    ...config,
    num_key_value_heads: config.num_key_value_heads ?? config.num_attention_heads,
    head_dim: config.head_dim ?? config.hidden_size / config.num_attention_heads,
    max_position_embeddings: config.max_position_embeddings ?? 2048,
    rms_norm_eps: config.rms_norm_eps ?? 1e-6,
    rope_theta: (rope?.rope_theta as number | undefined) ?? config.rope_theta ?? 10000,
    rope_scaling: ropeScaling(config.rope_scaling ?? rope ?? null, source),
    tie_word_embeddings: config.tie_word_embeddings ?? false,
    attention_bias: config.attention_bias ?? false,
    attention_dropout: config.attention_dropout ?? 0,
    mlp_bias: config.mlp_bias ?? false,
    initializer_range: config.initializer_range ?? 0.02,
  };
  checkSizes(
    resolved,
    [
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_hidden_layers",
      "num_attention_heads",
      "num_key_value_heads",
      "head_dim",
      "max_position_embeddings",
    ],
    source,
  );
  checkProbabilities(resolved, ["attention_dropout"], source);
  if (resolved.head_dim % 2 !== 0) {
    throw new RangeError(`${source}: head_dim must be even, is ${resolved.head_dim}`);
  }
  if (resolved.num_attention_heads % resolved.num_key_value_heads !== 0) {
    throw new RangeError(
      `${source}: num_attention_heads must be a multiple of num_key_value_heads, got ` +
        `${resolved.num_attention_heads} and ${resolved.num_key_value_heads}`,
    );
  }
  return { ...resolved, traits: family.traits(resolved, source) };
}

function ropeScaling(value: unknown, source: string): RopeScaling | null {
  if (value === null) return null;
  const scaling = value as Record<string, unknown>;
  const type = scaling.rope_type ?? scaling.type ?? "default";
  if (type === "default") return null;
  const need = (key: string): number => {
    const n = scaling[key];
    if (typeof n !== "number") {
      throw new TypeError(
        `${source}: rope_scaling of type "${type}" needs a number ${key}, has ${JSON.stringify(n)}`,
      );
    }
    return n;
  };
  if (type === "linear") return { rope_type: "linear", factor: need("factor") };
  if (type === "llama3") {
    return {
      rope_type: "llama3",
      factor: need("factor"),
      low_freq_factor: need("low_freq_factor"),
      high_freq_factor: need("high_freq_factor"),
      original_max_position_embeddings: need("original_max_position_embeddings"),
    };
  }
  throw new TypeError(
    `${source}: rope_scaling must be of type "default", "linear" or "llama3", is ${
      JSON.stringify(type)
    }`,
  );
}

/**
 * Angles a position of 1 turns each pair of a head by, [head_dim / 2], in radians (Su et al. 2021,
 * section 3.2.2; scaling as in Llama 3.1, `_compute_llama3_parameters` of transformers).
 */
export function ropeFrequencies(config: ResolvedLlamaConfig): Float64Array {
  const { head_dim, rope_theta, rope_scaling: scaling } = config;
  return Float64Array.from({ length: head_dim / 2 }, (_, i) => {
    const frequency = rope_theta ** (-2 * i / head_dim);
    if (scaling === null) return frequency;
    if (scaling.rope_type === "linear") return frequency / scaling.factor;
    const { factor, low_freq_factor: low, high_freq_factor: high } = scaling;
    // How often the pair turns around within the original context.
    const turns = scaling.original_max_position_embeddings * frequency / (2 * Math.PI);
    if (turns > high) return frequency;
    if (turns < low) return frequency / factor;
    const smooth = (turns - low) / (high - low);
    return (1 - smooth) * frequency / factor + smooth * frequency;
  });
}

/**
 * `adapter_config.json`, as Hugging Face PEFT reads and writes it.
 *
 * @module
 */

import { asWritten } from "./config_text.ts";

/** Settings of the start "loftq", by PEFT's names. */
export interface LoftqConfig {
  /** Bits of the base: 4 (NF4) or 8. Default 4. */
  readonly loftq_bits?: number;
  /** How often packing and the low-rank part are fitted to each other. Default 1. */
  readonly loftq_iter?: number;
}

/** Settings of the start "eva", by PEFT's names. */
export interface EvaConfig {
  /** A layer's rank is at most rho · r: ranks go where the data vary most. 1: every layer has r. Default 2. */
  readonly rho?: number;
  /** Where PEFT stops to read data; kept for its readers, since here all batches count. Default 0.99. */
  readonly tau?: number;
  /** Whether tokens that have no label are left out. Default true. */
  readonly use_label_mask?: boolean;
  /** What stands in place of a label that is none. Default -100. */
  readonly label_mask_value?: number;
  /**
   * Whether a direction is divided by the root of its singular value. PEFT's is larger, because it counts
   * tokens again when it sees them again. Default false.
   */
  readonly whiten?: boolean;
  /** Whether a layer's α changes as its rank does: α / r stays, and α / √r does not. Default true. */
  readonly adjust_scaling_factors?: boolean;
}

/** Settings of a LoRA adapter, by PEFT's names. */
export interface LoraConfig {
  /** Rank: the inner size of the two matrices. Default 8. */
  readonly r?: number;
  /** α: the scale is α / r. Default 8. */
  readonly lora_alpha?: number;
  /** Probability by which inputs of A are dropped in training. Default 0. */
  readonly lora_dropout?: number;
  /**
   * Which linear layers to adapt: a string is a regular expression on the whole name, a list holds names
   * or their endings after a dot, "all-linear" is every linear layer but the output layer. Default: by
   * model type; for a Llama, q_proj and v_proj.
   */
  readonly target_modules?: string | readonly string[] | null;
  /** Layers to leave out, by the same rules. */
  readonly exclude_modules?: string | readonly string[] | null;
  /** Numbers of the blocks to adapt; needs a list of target modules. Default: all. */
  readonly layers_to_transform?: number | readonly number[] | null;
  /** The name of the list of blocks; default: whatever the first number in a name belongs to. */
  readonly layers_pattern?: string | readonly string[] | null;
  /** Ranks of some layers: the first key that is the name, its ending after a dot, or matches it. */
  readonly rank_pattern?: Readonly<Record<string, number>>;
  /** As rank_pattern, for α. */
  readonly alpha_pattern?: Readonly<Record<string, number>>;
  /** Whether the scale is α / √r (Kalajdzievski 2023). Default false. */
  readonly use_rslora?: boolean;
  /**
   * How A and B start. true: A kaiming-uniform, B zero. false: both random. "gaussian": A normal with
   * deviation 1 / r, B zero. "orthogonal": both random with B A = 0. "pissa", "olora" and "loftq": from
   * the weight, "eva": from what data are to the layer; see `injectFromBase`. Default true.
   */
  readonly init_lora_weights?: boolean | string;
  /** How "eva" looks at data. Default null. */
  readonly eva_config?: EvaConfig | null;
  /** How "loftq" packs the base. Default: 4 bits, 1 iteration. */
  readonly loftq_config?: LoftqConfig;
  /** Whether the direction and the length of each row are learned apart (DoRA). Default false. */
  readonly use_dora?: boolean;
  /** Whether B has a bias. Default false. */
  readonly lora_bias?: boolean;
  /** Which biases of the base are trained: none, those of the targets, or all. Default "none". */
  readonly bias?: "none" | "all" | "lora_only";
  /** Modules, named as targets are in a list, of which the adapter has a full copy. Default none. */
  readonly modules_to_save?: readonly string[] | null;
  /** Whether the base's weights are [in, out]: set from the layers that are found. */
  readonly fan_in_fan_out?: boolean;
  /** Where the base model came from: a folder or a name; only for those who read the file. */
  readonly base_model_name_or_path?: string | null;
  /** Such as "CAUSAL_LM"; only for those who read the file. */
  readonly task_type?: string | null;
  /** What else the file held; written back as it was. */
  readonly [key: string]: unknown;
}

/** A configuration with nothing left open, which {@linkcode resolveLoraConfig} makes. */
export type ResolvedLoraConfig =
  & LoraConfig
  & Required<
    Pick<
      LoraConfig,
      | "r"
      | "lora_alpha"
      | "lora_dropout"
      | "target_modules"
      | "exclude_modules"
      | "layers_to_transform"
      | "layers_pattern"
      | "rank_pattern"
      | "alpha_pattern"
      | "use_rslora"
      | "init_lora_weights"
      | "loftq_config"
      | "eva_config"
      | "use_dora"
      | "lora_bias"
      | "bias"
      | "modules_to_save"
      | "fan_in_fan_out"
    >
  >;

/** Every key that PEFT writes for LORA, with its default. */
const DEFAULTS: Readonly<Record<string, unknown>> = {
  alora_invocation_tokens: null,
  alpha_pattern: {},
  arrow_config: null,
  auto_mapping: null,
  base_model_name_or_path: null,
  bias: "none",
  corda_config: null,
  ensure_weight_tying: false,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  kasa_config: null,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: null,
  loftq_config: {},
  lora_alpha: 8,
  lora_bias: false,
  lora_dropout: 0,
  lora_ga_config: null,
  megatron_config: null,
  megatron_core: "megatron.core",
  modules_to_save: null,
  monteclora_config: null,
  peft_type: "LORA",
  peft_version: "0.21.2",
  qalora_group_size: 16,
  r: 8,
  rank_pattern: {},
  revision: null,
  target_modules: null,
  target_parameters: null,
  task_type: null,
  trainable_token_indices: null,
  use_bdlora: null,
  use_dora: false,
  use_qalora: false,
  use_rslora: false,
  velora_config: null,
};

/** Settings that change what an adapter computes and are not built here: they must be at their default. */
const NOT_BUILT: readonly string[] = [
  "alora_invocation_tokens",
  "arrow_config",
  "corda_config",
  "ensure_weight_tying",
  "kasa_config",
  "layer_replication",
  "monteclora_config",
  "target_parameters",
  "trainable_token_indices",
  "use_bdlora",
  "use_qalora",
  "velora_config",
];

/** The starts that have names. */
const STARTS = /^(gaussian|orthogonal|olora|loftq|eva|pissa(_niter_[1-9]\d*)?)$/;

/** All ranks that a configuration names. */
function ranks(all: Record<string, unknown>): number[] {
  return [all.r as number, ...Object.values(all.rank_pattern as Record<string, number>)];
}

/**
 * Fills in PEFT's defaults and checks every setting. Unknown keys are kept, and told to `warn`.
 *
 * Throws a `TypeError` or `RangeError` that names the key at fault, or the feature that is not built.
 */
export function resolveLoraConfig(
  config: LoraConfig,
  source = "LoraConfig",
  warn: (message: string) => void = console.warn,
): ResolvedLoraConfig {
  const type = config.peft_type ?? "LORA";
  if (type !== "LORA") {
    throw new TypeError(`${source}: peft_type ${JSON.stringify(type)} is not built, "LORA" is`);
  }
  const unknown = Object.keys(config).filter((key) => !(key in DEFAULTS));
  if (unknown.length > 0) {
    warn(`${source}: unknown keys are kept but not used: ${unknown.join(", ")}`);
  }
  const given = Object.entries(config).filter(([, value]) => value !== undefined);
  const all: Record<string, unknown> = { ...DEFAULTS, ...Object.fromEntries(given) };
  for (const key of ["rank_pattern", "alpha_pattern", "loftq_config"]) all[key] ??= {};

  for (const key of NOT_BUILT) {
    if (JSON.stringify(all[key]) !== JSON.stringify(DEFAULTS[key])) {
      throw new TypeError(`${source}: ${key} ${JSON.stringify(all[key])} is not built`);
    }
  }
  const need = (key: string, holds: boolean, what: string): void => {
    if (!holds) {
      throw new RangeError(`${source}: ${key} must be ${what}, is ${JSON.stringify(all[key])}`);
    }
  };
  const isNumber = (value: unknown): value is number =>
    typeof value === "number" && Number.isFinite(value);
  const isRank = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 1;
  const isNames = (value: unknown): boolean =>
    value === null || typeof value === "string" ||
    (Array.isArray(value) && value.every((name) => typeof name === "string"));
  const isIndex = (value: unknown): boolean => Number.isInteger(value) && (value as number) >= 0;
  need("r", isRank(all.r), "a whole number from 1 on");
  need("lora_alpha", isNumber(all.lora_alpha), "a number");
  const { lora_dropout: p, init_lora_weights: init, layers_to_transform: layers } = all;
  need("lora_dropout", isNumber(p) && p >= 0 && p < 1, "a number in [0, 1)");
  for (const key of ["target_modules", "exclude_modules", "layers_pattern"]) {
    need(key, isNames(all[key]), "a string, a list of strings or null");
  }
  need(
    "layers_to_transform",
    layers === null || isIndex(layers) || (Array.isArray(layers) && layers.every(isIndex)),
    "a block's number, a list of them or null",
  );
  need(
    "layers_to_transform",
    layers === null || typeof all.target_modules !== "string",
    "null where target_modules is a string",
  );
  need(
    "layers_pattern",
    all.layers_pattern === null || layers !== null,
    "null where layers_to_transform is",
  );
  const isRecordOf = (value: unknown, holds: (v: unknown) => boolean): boolean =>
    typeof value === "object" && value !== null && Object.values(value).every(holds);
  need("rank_pattern", isRecordOf(all.rank_pattern, isRank), "an object of ranks");
  need("alpha_pattern", isRecordOf(all.alpha_pattern, isNumber), "an object of numbers");
  for (const key of ["use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"]) {
    need(key, typeof all[key] === "boolean", "true or false");
  }
  need("bias", ["none", "all", "lora_only"].includes(all.bias as string), "none, all or lora_only");
  need(
    "modules_to_save",
    all.modules_to_save === null ||
      (Array.isArray(all.modules_to_save) && isNames(all.modules_to_save)),
    "a list of names or null",
  );
  need("lora_bias", !(all.lora_bias && all.use_dora), "false with use_dora");
  need(
    "init_lora_weights",
    typeof init === "boolean" || STARTS.test(String(init)),
    'true, false, "gaussian", "orthogonal", "pissa", "pissa_niter_[number]", "olora", "loftq" or ' +
      '"eva" ("corda", which takes directions from data too, is not built)',
  );
  need(
    "init_lora_weights",
    init !== "orthogonal" || ranks(all).every((r) => r % 2 === 0),
    '"orthogonal" only with even ranks',
  );
  if (init === "loftq") all.loftq_config = resolveLoftq(all.loftq_config, source);
  if (init === "eva") all.eva_config = resolveEva(all.eva_config, source);
  return asWritten(config, all) as unknown as ResolvedLoraConfig;
}

function resolveLoftq(given: unknown, source: string): LoftqConfig {
  const config = { loftq_bits: 4, loftq_iter: 1, ...given as LoftqConfig };
  if (config.loftq_bits !== 4 && config.loftq_bits !== 8) {
    throw new RangeError(
      `${source}: loftq_config: loftq_bits must be 4 or 8, is ${JSON.stringify(config.loftq_bits)}`,
    );
  }
  if (!(Number.isInteger(config.loftq_iter) && config.loftq_iter >= 1)) {
    throw new RangeError(
      `${source}: loftq_config: loftq_iter must be a whole number from 1 on, is ${
        JSON.stringify(config.loftq_iter)
      }`,
    );
  }
  return config;
}

function resolveEva(given: unknown, source: string): EvaConfig {
  const config = {
    adjust_scaling_factors: true,
    label_mask_value: -100,
    rho: 2,
    tau: 0.99,
    use_label_mask: true,
    whiten: false,
    ...given as EvaConfig,
  };
  const need = (key: keyof EvaConfig, holds: boolean, what: string): void => {
    if (holds) return;
    throw new RangeError(
      `${source}: eva_config: ${key} must be ${what}, is ${JSON.stringify(config[key])}`,
    );
  };
  need("rho", Number.isFinite(config.rho) && config.rho >= 1, "a number from 1 on");
  need("tau", config.tau >= 0 && config.tau <= 1, "a number in [0, 1]");
  need("label_mask_value", Number.isInteger(config.label_mask_value), "a whole number");
  for (const key of ["use_label_mask", "whiten", "adjust_scaling_factors"] as const) {
    need(key, typeof config[key] === "boolean", "true or false");
  }
  return config;
}

/**
 * Qwen2 (Yang et al. 2024): Llama with a bias on queries, keys and values, and a window in some layers
 * where it is asked for.
 *
 * @module
 */

import { LlamaForCausalLM, llamaInfo } from "./llama.ts";
import type { LlamaConfig, LlamaFamily } from "./llama_config.ts";
import { windowOf } from "./mistral.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";

/** Sizes and settings of a Qwen2; the names are those of `config.json`. */
export interface Qwen2Config extends LlamaConfig {
  /** Whether any layer attends to a window. Default false. */
  readonly use_sliding_window?: boolean;
  /** How many positions up to its own a token sees in such a layer. Default 4096. */
  readonly sliding_window?: number | null;
  /** The first layer with a window, where layer_types does not say. Default 28. */
  readonly max_window_layers?: number;
  /** For each layer "full_attention" or "sliding_attention". */
  readonly layer_types?: readonly string[] | null;
}

const family: LlamaFamily = {
  modelType: "qwen2",
  defaults: { max_position_embeddings: 32768 },
  traits: (config, source) => ({
    inputBias: true,
    outputBias: false,
    headNorms: false,
    windows: layerWindows(config, source),
  }),
};

/**
 * The window of each layer, 0 for none, by Qwen's rules: none unless `use_sliding_window`; then in the
 * layers that `layer_types` names, or from `max_window_layers` on.
 *
 * Throws a `TypeError` or `RangeError` that names the setting at fault.
 */
export function layerWindows(
  config: Qwen2Config,
  source: string,
): number[] {
  const { num_hidden_layers: count, max_window_layers: first = 28, layer_types: types } = config;
  const window = config.use_sliding_window
    ? windowOf(config.sliding_window === undefined ? 4096 : config.sliding_window, source)
    : 0;
  const known = ["full_attention", "sliding_attention"];
  const fits = types == null ||
    (Array.isArray(types) && types.length === count && types.every((t) => known.includes(t)));
  if (!fits) {
    throw new TypeError(
      `${source}: layer_types must name ${known.join(" or ")} for each of ${count} layers, is ${
        JSON.stringify(types)
      }`,
    );
  }
  return Array.from(
    { length: count },
    (_, i) => (types ? types[i] === "sliding_attention" : i >= first) ? window : 0,
  );
}

/** Qwen2 with its output layer. */
export class Qwen2ForCausalLM extends LlamaForCausalLM {
  /** Its checkpoints. */
  static override readonly pretrained: PretrainedInfo = llamaInfo("Qwen2ForCausalLM", family);

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: Qwen2Config) {
    super(config, family);
  }
}

/**
 * Mistral (Jiang et al. 2023): Llama with attention to a window of positions.
 *
 * @module
 */

import { LlamaForCausalLM, llamaInfo } from "./llama.ts";
import type { LlamaConfig, LlamaFamily } from "./llama_config.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";

/** Sizes and settings of a Mistral; the names are those of `config.json`. */
export interface MistralConfig extends LlamaConfig {
  /** How many positions up to its own a token sees; null: all. Default 4096. */
  readonly sliding_window?: number | null;
}

const family: LlamaFamily = {
  modelType: "mistral",
  defaults: { max_position_embeddings: 131072, sliding_window: 4096 },
  traits: ({ sliding_window, num_hidden_layers }, source) => ({
    inputBias: false,
    outputBias: false,
    headNorms: false,
    windows: Array(num_hidden_layers).fill(windowOf(sliding_window, source)),
  }),
};

/**
 * The window that `sliding_window` says, 0 for none.
 *
 * Throws a `RangeError` where it is no whole number from 1 on.
 */
export function windowOf(value: unknown, source: string): number {
  if (value === null) return 0;
  if (!Number.isInteger(value) || (value as number) < 1) {
    throw new RangeError(
      `${source}: sliding_window must be a whole number from 1 on or null, is ${
        JSON.stringify(value)
      }`,
    );
  }
  return value as number;
}

/**
 * Mistral with its output layer.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { MistralForCausalLM } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new MistralForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, sliding_window: 2,
 * });
 * const ids = tensor([[1, 2, 3, 4]], { dtype: "i32" });
 * console.log(model.logits(model.forward(ids)).shape); // [1, 4, 50]
 * ```
 */
export class MistralForCausalLM extends LlamaForCausalLM {
  /** Its checkpoints. */
  static override readonly pretrained: PretrainedInfo = llamaInfo("MistralForCausalLM", family);

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: MistralConfig) {
    super(config, family);
  }
}

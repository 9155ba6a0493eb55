/**
 * Qwen3 (Yang et al. 2025): Llama whose heads of queries and keys are normalised, with windows as
 * Qwen2's.
 *
 * @module
 */

import { LlamaForCausalLM, llamaInfo } from "./llama.ts";
import type { LlamaFamily } from "./llama_config.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";
import { layerWindows, type Qwen2Config } from "./qwen2.ts";

/** Sizes and settings of a Qwen3; the names are those of `config.json`. */
export interface Qwen3Config extends Qwen2Config {
  /** Size of a head, whatever the hidden size. Default 128. */
  readonly head_dim?: number;
}

const family: LlamaFamily = {
  modelType: "qwen3",
  defaults: { head_dim: 128, max_position_embeddings: 32768 },
  traits: (config, source) => ({
    inputBias: config.attention_bias,
    outputBias: config.attention_bias,
    headNorms: true,
    windows: layerWindows(config, source),
  }),
};

/** Qwen3 with its output layer. */
export class Qwen3ForCausalLM extends LlamaForCausalLM {
  /** Its checkpoints. */
  static override readonly pretrained: PretrainedInfo = llamaInfo("Qwen3ForCausalLM", family);

  /** Fresh weights. Throws a `TypeError` or `RangeError` that names the setting at fault. */
  constructor(config: Qwen3Config) {
    super(config, family);
  }
}

/**
 * Llamas that take training steps, for the benchmarks.
 *
 * @module
 */

import { currentDevice, type Device, type Tensor, tensor, type Variable } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";

/** The shape of stories15M; random weights serve as well here. */
export const STORIES_15M = {
  vocab_size: 32000,
  hidden_size: 288,
  intermediate_size: 768,
  num_hidden_layers: 6,
  num_attention_heads: 6,
  max_position_embeddings: 256,
  tie_word_embeddings: true,
};

/** A Llama of which a step takes milliseconds. */
export const SMALL = {
  vocab_size: 512,
  hidden_size: 64,
  intermediate_size: 172,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  max_position_embeddings: 64,
  tie_word_embeddings: true,
};

const TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"];

/** A model in training. */
export interface Trainer {
  readonly device: Device;
  /** What is trained. */
  readonly trained: readonly Variable[];
  /** Bytes of all parameters, and of those that LoRA added. */
  readonly weights: number;
  readonly added: number;
  /** Takes step number `index` and gives its loss. */
  step(index: number): Promise<number>;
}

/** A Llama with random weights, trained with AdamW on the current device: all of it, or LoRA on q, k, v, o. */
export async function trainer(
  config: typeof SMALL,
  method: "lora" | "full",
  [batch, sequence]: readonly [batch: number, sequence: number],
  rank = 8,
): Promise<Trainer> {
  const device = currentDevice();
  const model = new LlamaForCausalLM(config);
  const bytes = (): number => model.parameters().reduce((sum, p) => sum + 4 * p.size, 0);
  const base = bytes();
  if (method === "lora") inject(model, { r: rank, lora_alpha: 16, target_modules: TARGETS });
  await device.flush();
  const trained = model.trainable();
  const optimizer = new AdamW(trained, { lr: 1e-3 });
  return {
    device,
    trained,
    weights: bytes(),
    added: bytes() - base,
    async step(index: number): Promise<number> {
      const token = (i: number): number => (i * 31 + index * 17 + (i >> 3)) % config.vocab_size;
      const make = (shift: number): Tensor =>
        tensor(Int32Array.from({ length: batch * sequence }, (_, i) => token(i + shift)), {
          shape: [batch, sequence],
        });
      const loss = model.loss({ inputs: make(0), targets: make(1) });
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      return await loss.item();
    },
  };
}

/**
 * Supervised fine-tuning: next-token loss on demonstrations.
 *
 * @module
 */

import type { Tensor } from "../core/mod.ts";
import { IGNORED_TARGET } from "../data/mod.ts";
import type { CausalLM, LanguageBatch } from "../nn/mod.ts";
import { rowLimits } from "./checks.ts";

/** Options of {@linkcode sftLoss}. */
export interface SFTOptions {
  /**
   * What the sum over targets is divided by. Default: the batch's own. Where several batches make one
   * step, give the targets of all, so that each weighs the same.
   */
  readonly count?: number;
}

/**
 * The loss of supervised fine-tuning: the sum of −log π over the targets that count, divided by their
 * number, in nats (Ouyang et al. 2022, section 3.5). What counts is the data's to say: `tokenize` leaves
 * out prompts and what is not the assistant's, `pack` with `separate` lets documents share rows without
 * seeing each other, and `mix` brings a share of general text. Logits are made a chunk of rows at a
 * time, as by `model.loss`.
 *
 * Throws a `RangeError` where a batch on the host has a text that is longer than the context, or no
 * target that counts, or the count is below 1.
 *
 * @example Two batches in one step, each token with the same weight
 * ```ts
 * import { init } from "@graft/ml";
 * import { pack, DataLoader } from "@graft/ml/data";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { AdamW } from "@graft/ml/optim";
 * import { sftLoss } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * const documents = [
 *   { ids: Int32Array.of(1, 5, 6, 7, 2), promptLength: 2 },
 *   { ids: Int32Array.of(1, 8, 2), promptLength: 2 },
 *   { ids: Int32Array.of(1, 9, 10, 11, 12, 2), promptLength: 2 },
 * ];
 * const dataset = pack(documents, 8, 0, { separate: true });
 * const batches = [...new DataLoader(dataset, { batchSize: 1, epochs: 1 })];
 * const count = batches.reduce((sum, { targetCount }) => sum + targetCount, 0);
 * const optimizer = new AdamW(model.trainable(), { lr: 1e-3 });
 * for (const batch of batches) sftLoss(model, batch, { count }).backward();
 * await optimizer.step();
 * optimizer.zeroGrad();
 * ```
 */
export function sftLoss(model: CausalLM, batch: LanguageBatch, options: SFTOptions = {}): Tensor {
  const { count } = options;
  if (count !== undefined && !(count >= 1)) {
    throw new RangeError(`sftLoss: count must be 1 or more, got ${count}`);
  }
  if (!("shape" in batch)) {
    const loss = model.loss(batch);
    if (count === undefined) return loss;
    return loss.mul(batch.targets.ne(IGNORED_TARGET).to("f32").sum()).div(count);
  }
  const longest = longestText(batch.shape, batch.documents);
  const { max_position_embeddings: context } = rowLimits(model);
  if (longest > context) {
    throw new RangeError(
      `sftLoss: a text of ${longest} tokens is longer than the model's context of ${context}`,
    );
  }
  const own = batch.targets.reduce((n, target) => target === IGNORED_TARGET ? n : n + 1, 0);
  if (own === 0) throw new RangeError("sftLoss: the batch has no target that counts");
  const loss = model.loss(batch);
  return count === undefined ? loss : loss.mul(own / count);
}

/** Tokens of the longest run of one document in a row. */
function longestText([, t]: readonly number[], documents?: Int32Array): number {
  if (!documents) return t;
  let longest = 0, run = 0;
  documents.forEach((number, i) => {
    run = i % t > 0 && number === documents[i - 1] ? run + 1 : 1;
    longest = Math.max(longest, run);
  });
  return longest;
}

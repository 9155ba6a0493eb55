/**
 * What a policy, and a value model with it, says of given answers.
 *
 * @module
 */

import type { Tensor } from "../core/mod.ts";
import type { CausalLM } from "../nn/mod.ts";
import type { AnswerBatch } from "./answers.ts";
import { rowLimits } from "./checks.ts";
import { tokenLogprobs } from "./token_logprobs.ts";
import type { ValueModel } from "./value_model.ts";

/** The temperature of sampling and of every probability, unless told otherwise. */
export const TEMPERATURE = 0.7;

/** What {@linkcode policyPass} gives, [B, R] each; padding holds anything finite. */
export interface PolicyPass {
  /** log π of each token, in nats. */
  readonly logprobs: Tensor;
  /** Entropy of π in each token's state, in nats; without gradient. */
  readonly entropy: Tensor;
  /** V of each token's state; null where there is no value model. */
  readonly values: Tensor | null;
}

/** Options of {@linkcode policyPass}. */
export interface PolicyPassOptions {
  /** Gives V. Default: none. */
  readonly value?: ValueModel;
  /** Divides the logits. Default .7. */
  readonly temperature?: number;
}

/**
 * One pass over a batch of answers: log π, entropy and V of each answer's tokens.
 *
 * Throws a `RangeError` where a prompt and its answer are longer than the model's context.
 */
export function policyPass(
  model: CausalLM,
  batch: AnswerBatch,
  options: PolicyPassOptions = {},
): PolicyPass {
  const { value, temperature = TEMPERATURE } = options;
  const { rows, length, states, tokens, longest } = batch;
  const { max_position_embeddings: context } = rowLimits(model);
  if (longest - 1 > context) { // the last token is read by nobody
    throw new RangeError(
      `policyPass: a prompt and its answer have ${longest} tokens, and the model's context ` +
        `${context}; shorten the prompt or leave it out`,
    );
  }
  // Padding may go beyond the context, where some models have no position.
  const beyond = Math.max(0, batch.ids.shape[1] - context);
  const within = batch.ids.shape[1] - beyond;
  const ids = beyond > 0 ? batch.ids.slice(1, 0, within) : batch.ids;
  const whole = (x: Tensor): Tensor => beyond > 0 ? x.pad(1, 0, beyond) : x;
  const hidden = model.forward(ids); // [B, T, hidden]
  const picked = whole(hidden).reshape(-1, hidden.shape[2]).take(states); // [B · R, hidden]
  const { logprobs, entropy } = tokenLogprobs(model, picked, tokens, temperature);
  return {
    logprobs: logprobs.reshape(rows, length),
    entropy: entropy.reshape(rows, length),
    values: value
      ? whole(value.forward(ids, hidden)).reshape(-1).take(states).reshape(rows, length)
      : null,
  };
}

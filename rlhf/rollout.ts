/**
 * Rollout: sampled answers, and what policy, reference and value model say of each of their tokens.
 *
 * @module
 */

import { read } from "../core/mod.ts";
import { type CausalLM, generateBatch, type GenerateOptions } from "../nn/mod.ts";
import { withoutAdapters } from "../peft/mod.ts";
import type { PerToken } from "./advantages.ts";
import {
  type Answer,
  type AnswerBatch,
  answerBatch,
  type AnswerRoom,
  perAnswer,
} from "./answers.ts";
import { checkTokens, rowLimits } from "./checks.ts";
import { evaluating } from "./modes.ts";
import { type PolicyPass, policyPass, TEMPERATURE } from "./policy_pass.ts";
import type { ValueModel } from "./value_model.ts";

/** A score for each answer, by a rule, a model or a person. */
export type Reward = (answers: readonly Answer[]) => Promise<ArrayLike<number>>;

/** An answer with what was known when it was sampled, for each of its tokens. */
export interface Rollout extends Answer {
  /** log π, in nats. */
  readonly logprobs: PerToken;
  /** log π_ref, in nats. */
  readonly refLogprobs: PerToken;
  /** Entropy of π in the state that the token was chosen from, in nats. */
  readonly entropy: PerToken;
  /** V of that state; 0 where there is no value model. */
  readonly values: PerToken;
}

/** Options of {@linkcode sampleAnswers}: as of generation, but the temperature is .7 by default. */
export type SampleOptions = GenerateOptions;

/**
 * Samples an answer to each prompt. A stop token that ends an answer is its last token, so no answer is
 * empty; an answer that reaches `maxTokens` or the end of the model's context is cut off there.
 *
 * A `cache` of `createCache(prompts, capacity)` that all calls share spares the memory and the plans of
 * one for each call: its capacity is at least the longest prompt in sixteens, plus `maxTokens`.
 *
 * Throws a `RangeError` where a prompt is empty or longer than the context.
 */
export async function sampleAnswers(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  options: SampleOptions = {},
): Promise<Answer[]> {
  const rows = await generateBatch(model, prompts, { temperature: TEMPERATURE, ...options });
  return rows.map(({ tokens, stop }, b) => ({
    prompt: prompts[b],
    tokens: stop === null ? tokens : [...tokens, stop],
    ended: stop !== null,
  }));
}

/** Options of {@linkcode measureAnswers}. */
export interface MeasureOptions {
  /** Gives V. Default: none, all values are 0. */
  readonly value?: ValueModel;
  /** Divides the logits of policy and reference, as in sampling. Default .7. */
  readonly temperature?: number;
  /** Answers in a pass. Default: all. */
  readonly batch?: number;
  /** Room in the tensors of a pass. */
  readonly room?: AnswerRoom;
}

/**
 * What policy, reference and value model say of answers, sampled or given. The reference policy is the
 * same model with its adapters off: no second copy.
 *
 * Throws a `RangeError` as {@linkcode answerBatch} does, and where an answer is longer than the context with
 * its prompt, or has a token outside the vocabulary.
 */
export async function measureAnswers(
  model: CausalLM,
  answers: readonly Answer[],
  options: MeasureOptions = {},
): Promise<Rollout[]> {
  const { value, temperature = TEMPERATURE, batch: size = answers.length, room } = options;
  const rollouts: Rollout[] = [];
  const now = (batch: AnswerBatch): PolicyPass => policyPass(model, batch, { value, temperature });
  const reference = (batch: AnswerBatch): PolicyPass =>
    withoutAdapters(model, () => policyPass(model, batch, { temperature }));
  const tokens = answers.map((answer) => [...answer.prompt, ...answer.tokens]);
  checkTokens("measureAnswers", "answer", tokens, rowLimits(model));
  for (let at = 0; at < answers.length; at += size) {
    const rows = answers.slice(at, at + size);
    const batch = answerBatch(rows, room);
    const { logprobs, entropy, values } = evaluating(
      model,
      () => evaluating(value?.backbone ?? model, () => now(batch)),
    );
    const { logprobs: refLogprobs } = evaluating(model, () => reference(batch));
    const results = await read(logprobs, refLogprobs, entropy, ...values ? [values] : []);
    const [own, others, entropies, seen] = results.map((data) =>
      perAnswer(rows, batch.length, data as ArrayLike<number>)
    );
    rows.forEach((answer, b) =>
      rollouts.push({
        ...answer,
        logprobs: own[b],
        refLogprobs: others[b],
        entropy: entropies[b],
        values: seen?.[b] ?? new Float32Array(answer.tokens.length),
      })
    );
  }
  return rollouts;
}

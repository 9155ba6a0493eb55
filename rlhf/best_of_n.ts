/**
 * Best-of-n: what a reward can do without any training.
 *
 * @module
 */

import type { CausalLM } from "../nn/mod.ts";
import { type Reward, sampleAnswers, type SampleOptions } from "./rollout.ts";
import type { Answer } from "./answers.ts";
import { checkScores } from "./scores.ts";

/** Options of {@linkcode bestOfN}. */
export interface BestOfNOptions extends SampleOptions {
  /** Answers to choose from. Default 4. */
  readonly n?: number;
}

/** What {@linkcode bestOfN} gives for a prompt. */
export interface BestOfN {
  /** The answer with the highest score; of several, the one that was sampled first. */
  readonly answer: Answer;
  /** Its score. */
  readonly score: number;
  /** All n answers. */
  readonly answers: readonly Answer[];
  /** Their scores. */
  readonly scores: readonly number[];
}

/**
 * Samples n answers to each prompt and takes the one with the highest score (Stiennon et al. 2020,
 * "Learning to summarize from human feedback", appendix): the baseline for what trains a policy. Its KL
 * to the model is at most `log n − (n − 1) / n` nats.
 *
 * Throws a `RangeError` where n is below 1, a prompt is empty or longer than the context, or there is
 * not a finite score for each answer.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { bestOfN } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2, eos_token_id: 2,
 * });
 * const [best] = await bestOfN(
 *   model,
 *   [[1, 5]],
 *   (answers) => Promise.resolve(answers.map(({ tokens }) => -tokens.length)),
 *   { n: 3, maxTokens: 8 },
 * );
 * console.log(best.score === Math.max(...best.scores)); // true
 * ```
 */
export async function bestOfN(
  model: CausalLM,
  prompts: readonly (readonly number[])[],
  reward: Reward,
  options: BestOfNOptions = {},
): Promise<BestOfN[]> {
  const { n = 4, ...sampling } = options;
  if (!Number.isInteger(n) || n < 1) {
    throw new RangeError(`bestOfN: n must be a whole number from 1 on, got ${n}`);
  }
  const repeated = prompts.flatMap((prompt) => Array<readonly number[]>(n).fill(prompt));
  const all = await sampleAnswers(model, repeated, sampling);
  const scored = checkScores("bestOfN", await reward(all), all.length);
  return prompts.map((_, p) => {
    const answers = all.slice(p * n, (p + 1) * n);
    const scores = [...scored.subarray(p * n, (p + 1) * n)];
    const best = scores.indexOf(Math.max(...scores));
    return { answer: answers[best], score: scores[best], answers, scores };
  });
}

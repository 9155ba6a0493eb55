/**
 * Rollouts and their scores, made into what PPO learns from.
 *
 * @module
 */

import {
  type AdvantageOptions,
  generalizedAdvantages,
  type PerToken,
  tokenRewards,
  whiten,
} from "./advantages.ts";
import type { Rollout } from "./rollout.ts";
import { checkScores } from "./scores.ts";

/** A rollout with what its tokens were worth. */
export interface Experience extends Rollout {
  /** The answer's score, less the penalty where it has no end. */
  readonly score: number;
  /** Whitened advantages. */
  readonly advantages: PerToken;
  /** What the values should have been. */
  readonly returns: PerToken;
}

/** Options of {@linkcode makeExperience}. */
export interface ExperienceOptions extends AdvantageOptions {
  /** β, the coefficient of the KL penalty. Default .05. */
  readonly beta?: number;
  /** Taken off the score of an answer without an end token. Default 0. */
  readonly missingEndPenalty?: number;
  /** Whether rewards are brought to variance 1, with their mean kept. Default false. */
  readonly whitenRewards?: boolean;
}

/** What a batch of rollouts came to, under TRL's names; all but the last are means over answers. */
export interface ObjectiveMetrics {
  /** KL to the reference, `Σ log π − log π_ref` over an answer's tokens, in nats. */
  readonly "objective/kl": number;
  /** `−Σ log π` over an answer's tokens, in nats. */
  readonly "objective/entropy": number;
  /** The penalty, −β KL. */
  readonly "objective/non_score_reward": number;
  /** Score and penalty together: what PPO maximises. */
  readonly "objective/rlhf_reward": number;
  /** The scores, less the penalty for a missing end. */
  readonly "objective/scores": number;
  /** Answers with an end token. */
  readonly "val/num_eos_tokens": number;
}

/**
 * Rewards, advantages and returns of rollouts, given a score for each; see {@linkcode tokenRewards},
 * {@linkcode generalizedAdvantages} and {@linkcode whiten}. Returns are taken before whitening.
 *
 * Throws a `RangeError` where there are not as many scores as rollouts, one is not finite, or a rollout
 * has a log-probability that is not.
 */
export function makeExperience(
  rollouts: readonly Rollout[],
  scores: ArrayLike<number>,
  options: ExperienceOptions = {},
): { rows: Experience[]; metrics: ObjectiveMetrics } {
  const { beta = 0.05, missingEndPenalty = 0, whitenRewards = false } = options;
  checkRollouts(rollouts);
  const given = checkScores("makeExperience", scores, rollouts.length);
  const final = rollouts.map(({ ended }, b) => given[b] - (ended ? 0 : missingEndPenalty));
  let rewards = rollouts.map(({ logprobs, refLogprobs }, b) =>
    tokenRewards(final[b], logprobs, refLogprobs, beta)
  );
  if (whitenRewards) rewards = whiten(rewards, true);
  const estimates = rollouts.map(({ values }, b) =>
    generalizedAdvantages(rewards[b], values, options)
  );
  const advantages = whiten(estimates.map((e) => e.advantages));
  const rows = rollouts.map((rollout, b) => ({
    ...rollout,
    score: final[b],
    advantages: advantages[b],
    returns: estimates[b].returns,
  }));
  return { rows, metrics: objective(rows, beta) };
}

/** The ranks of a job, as {@linkcode gatherExperience} needs them. */
export interface JobRanks {
  /** This rank, from 0. */
  readonly rank: number;
  /** The values that all ranks give, by rank; a value is what JSON can say. */
  gather<T>(value: T): Promise<T[]>;
}

/** What ranks tell each other of their rollouts, or what is wrong with them. */
interface Share {
  readonly fault: string | null;
  readonly rows: readonly {
    readonly score: number;
    readonly ended: boolean;
    readonly logprobs: readonly number[];
    readonly refLogprobs: readonly number[];
    readonly values: readonly number[];
  }[];
}

/**
 * {@linkcode makeExperience} over the rollouts of all ranks, which each rank calls with its own: advantages
 * are whitened over the tokens of all, and the metrics are those of all answers, so that every rank
 * steers β alike. Gives this rank's rows.
 *
 * Throws as {@linkcode makeExperience} does, on every rank and with the first rank at fault; and what
 * `gather` throws.
 *
 * @example
 * ```ts
 * import { allGatherValues, singleGroup } from "@graft/ml/dist";
 * import { gatherExperience, type Rollout } from "@graft/ml/rlhf";
 *
 * const group = singleGroup(); // in a program: await initProcessGroup()
 * const ranks = {
 *   rank: group.rank,
 *   gather: <T>(value: T) => allGatherValues(group, value, { label: "rollouts" }),
 * };
 * const of = (...x: number[]) => Float32Array.from(x);
 * const rollout: Rollout = {
 *   prompt: [1], tokens: [5, 2], ended: true,
 *   logprobs: of(-1, -2), refLogprobs: of(-1, -1), entropy: of(1, 1), values: of(0, 0),
 * };
 * const { rows, metrics } = await gatherExperience(ranks, [rollout], [1]);
 * console.log(rows.length, metrics["objective/kl"]); // 1 -1
 * ```
 */
export async function gatherExperience(
  ranks: JobRanks,
  rollouts: readonly Rollout[],
  scores: ArrayLike<number>,
  options: ExperienceOptions = {},
): Promise<{ rows: Experience[]; metrics: ObjectiveMetrics }> {
  const fault = faultOf(rollouts, scores);
  const own: Share = {
    fault,
    rows: fault !== null ? [] : rollouts.map(({ ended, ...row }, b) => ({
      score: scores[b],
      ended,
      logprobs: Array.from(row.logprobs),
      refLogprobs: Array.from(row.refLogprobs),
      values: Array.from(row.values),
    })),
  };
  const shares = await ranks.gather(own);
  const broken = shares.findIndex((share) => share.fault !== null);
  if (broken >= 0) throw new RangeError(`rank ${broken}: ${shares[broken].fault}`);
  const all = shares.flatMap((share) => share.rows);
  const { rows, metrics } = makeExperience(
    all.map(({ ended, logprobs, refLogprobs, values }): Rollout => ({
      prompt: [],
      tokens: [],
      ended,
      logprobs: Float32Array.from(logprobs),
      refLogprobs: Float32Array.from(refLogprobs),
      entropy: new Float32Array(),
      values: Float32Array.from(values),
    })),
    all.map(({ score }) => score),
    options,
  );
  const from = shares.slice(0, ranks.rank).reduce((sum, share) => sum + share.rows.length, 0);
  return { rows: rollouts.map((rollout, b) => ({ ...rows[from + b], ...rollout })), metrics };
}

/** What is wrong with rollouts or scores, in words. */
function faultOf(rollouts: readonly Rollout[], scores: ArrayLike<number>): string | null {
  try {
    checkRollouts(rollouts);
    checkScores("gatherExperience", scores, rollouts.length);
    return null;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

function checkRollouts(rollouts: readonly Rollout[]): void {
  if (rollouts.length === 0) throw new RangeError("makeExperience: needs at least one rollout");
  rollouts.forEach(({ logprobs, refLogprobs, values }, b) => {
    for (const [name, row] of Object.entries({ logprobs, refLogprobs, values })) {
      const t = row.findIndex((x) => !Number.isFinite(x));
      if (t >= 0) {
        throw new RangeError(
          `makeExperience: ${name} of answer ${b} must be finite, got ${row[t]} at token ${t}`,
        );
      }
    }
  });
}

function objective(rows: readonly Experience[], beta: number): ObjectiveMetrics {
  const mean = (of: (row: Experience) => number): number =>
    rows.reduce((sum, row) => sum + of(row), 0) / rows.length;
  const kl = mean(klOf);
  const scores = mean((row) => row.score);
  return {
    "objective/kl": kl,
    "objective/entropy": mean(({ logprobs }) => -sumOf(logprobs)),
    "objective/non_score_reward": -beta * kl,
    "objective/rlhf_reward": scores - beta * kl,
    "objective/scores": scores,
    "val/num_eos_tokens": rows.filter((row) => row.ended).length,
  };
}

/** `Σ log π − log π_ref` over an answer's tokens, in nats: an estimate of the KL that can be negative. */
export function klOf({ logprobs, refLogprobs }: Rollout): number {
  return sumOf(logprobs) - sumOf(refLogprobs);
}

function sumOf(row: PerToken): number {
  return row.reduce((sum, x) => sum + x, 0);
}

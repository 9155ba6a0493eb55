/**
 * How a reward model learns from ranked answers.
 *
 * @module
 */

import { noGrad, type Tensor, tensor } from "../core/mod.ts";
import type { RewardModel } from "./reward_model.ts";

/** Ranked answers to a prompt, as tokens; with two of them, a pair. */
export interface RankedAnswers {
  /** The prompt. */
  readonly prompt: readonly number[];
  /** The answers; an end token is the last of one that has it. */
  readonly answers: readonly (readonly number[])[];
  /** The rank of each, lower is better; equal ones are a tie. Default: best first, without ties. */
  readonly ranks?: readonly number[];
  /** By how much a better answer should score higher. Default 0. */
  readonly margin?: number;
}

/** Options of {@linkcode rankingLoss}. */
export interface RankingOptions {
  /**
   * What the sum over prompts is divided by. Default: the prompts given that have a pair. Where several
   * batches make one step, give those of all.
   */
  readonly count?: number;
  /** Tokens that rows are padded to; default: the longest's, in sixteens. */
  readonly width?: number;
}

/** What {@linkcode rankingLoss} gives: scalars; all but the loss are for the log, under TRL's names. */
export interface RankingLoss {
  /** The loss. */
  readonly loss: Tensor;
  /** Share of the pairs of which the better answer scores higher. */
  readonly accuracy: Tensor;
  /** Mean difference of a pair's scores. */
  readonly margin: Tensor;
  /** Mean score. */
  readonly mean_reward: Tensor;
  /** Lowest score. */
  readonly min_reward: Tensor;
  /** Highest score. */
  readonly max_reward: Tensor;
}

/**
 * All pairs of rows of a prompt: `better[i]` is ranked above `worse[i]`. Ties are there with weight 0, so
 * that the number of pairs, and with it the plan, does not depend on them.
 */
interface Pairs {
  readonly better: number[];
  readonly worse: number[];
  readonly margins: number[];
  /** 1 over the number of the prompt's pairs that do not tie. */
  readonly weights: number[];
  /** Pairs that do not tie. */
  readonly count: number;
  /** Prompts that have one. */
  readonly groups: number;
}

/**
 * The loss of a reward model over ranked answers: for each prompt the mean over all its pairs of
 *
 *     −log σ(r_better − r_worse − margin)
 *
 * and of these the mean over prompts (Ouyang et al. 2022, section 3.5, formula 1; Bradley and Terry
 * 1952). All pairs of a prompt are in one batch element, and each answer goes through the model once: K
 * passes for the C(K, 2) pairs of K answers. Answers of one rank make no pair, and the mean is over the
 * pairs that are left; a prompt whose answers all tie teaches nothing and does not count.
 *
 * Throws a `RangeError` where there is no pair at all, a prompt has fewer than two answers or one that is
 * empty, there is not a finite rank for each, or a row does not fit the model.
 */
export function rankingLoss(
  model: RewardModel,
  groups: readonly RankedAnswers[],
  options: RankingOptions = {},
): RankingLoss {
  groups.forEach(checkGroup);
  const pairs = pairsOf(groups);
  if (pairs.groups === 0) {
    throw new RangeError(
      `rankingLoss: ${groups.length} prompts have no pair to learn from: all answers tie`,
    );
  }
  const rows = groups.flatMap(({ prompt, answers }) => answers.map((a) => [...prompt, ...a]));
  const scores = model.scores(rows, options.width); // [N]
  const at = (rows: number[]): Tensor => scores.take(tensor(Int32Array.from(rows))); // [P]
  const difference = at(pairs.better).sub(at(pairs.worse));
  const weights = tensor(Float32Array.from(pairs.weights));
  const loss = tensor(Float32Array.from(pairs.margins)).sub(difference).softplus()
    .mul(weights).sum().div(options.count ?? pairs.groups);
  return noGrad(() => {
    const share = weights.gt(0).to("f32").div(pairs.count); // each pair alike
    return {
      loss,
      accuracy: difference.gt(0).to("f32").mul(share).sum(),
      margin: difference.mul(share).sum(),
      mean_reward: scores.mean(),
      min_reward: scores.min(),
      max_reward: scores.max(),
    };
  });
}

function pairsOf(groups: readonly RankedAnswers[]): Pairs {
  const better: number[] = [], worse: number[] = [], margins: number[] = [], weights: number[] = [];
  let first = 0, total = 0, counted = 0;
  for (const { answers, ranks = answers.map((_, i) => i), margin = 0 } of groups) {
    const start = better.length;
    const isTie: boolean[] = [];
    for (let i = 0; i < answers.length; i++) {
      for (let j = i + 1; j < answers.length; j++) {
        const [up, down] = ranks[i] < ranks[j] ? [i, j] : [j, i];
        better.push(first + up);
        worse.push(first + down);
        margins.push(margin);
        isTie.push(ranks[i] === ranks[j]);
      }
    }
    const count = isTie.filter((tie) => !tie).length;
    isTie.forEach((tie, k) => weights[start + k] = tie ? 0 : 1 / count);
    total += count;
    if (count > 0) counted++;
    first += answers.length;
  }
  return { better, worse, margins, weights, count: total, groups: counted };
}

function checkGroup({ answers, ranks, margin = 0 }: RankedAnswers, g: number): void {
  if (answers.length < 2) {
    throw new RangeError(`rankingLoss: prompt ${g} needs 2 answers or more, has ${answers.length}`);
  }
  const empty = answers.findIndex((answer) => answer.length === 0);
  if (empty >= 0) {
    throw new RangeError(
      `rankingLoss: answer ${empty} to prompt ${g} is empty, it needs a token (an empty answer has ` +
        "its end)",
    );
  }
  if (ranks && (ranks.length !== answers.length || !ranks.every(Number.isFinite))) {
    throw new RangeError(
      `rankingLoss: prompt ${g} needs a rank for each of ${answers.length} answers, got ` +
        `[${ranks.join(", ")}]`,
    );
  }
  if (!Number.isFinite(margin)) {
    throw new RangeError(`rankingLoss: the margin of prompt ${g} must be finite, got ${margin}`);
  }
}

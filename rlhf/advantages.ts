/**
 * From scores of whole answers to the advantage of each token: rewards with the KL penalty, generalised
 * advantage estimation, whitening. All of it on the host, where scores come from, over answers of
 * different length: there is no padding that could count.
 *
 * @module
 */

/** One number for each token of an answer. */
export type PerToken = Float32Array<ArrayBuffer>;

/** Options of {@linkcode generalizedAdvantages}. */
export interface AdvantageOptions {
  /** What a reward one token later is worth. Default 1. */
  readonly gamma?: number;
  /** Between one-step estimates (0, biased) and whole returns (1, noisy). Default .95. */
  readonly lambda?: number;
}

/**
 * Rewards of one answer's tokens: `−β (log π − log π_ref)` each, and the answer's score at the last
 * (Ziegler et al. 2019, section 2.2).
 *
 * Throws a `RangeError` where the answer is empty, the lengths differ, or the score is not finite.
 */
export function tokenRewards(
  score: number,
  logprobs: PerToken,
  refLogprobs: PerToken,
  beta: number,
): PerToken {
  if (logprobs.length === 0) {
    throw new RangeError("tokenRewards: the answer is empty, it needs at least one token");
  }
  sameLength("tokenRewards", "logprobs", logprobs, "refLogprobs", refLogprobs);
  if (!Number.isFinite(score)) {
    throw new RangeError(`tokenRewards: the score must be finite, got ${score}`);
  }
  const rewards = logprobs.map((logprob, t) => -beta * (logprob - refLogprobs[t]));
  rewards[rewards.length - 1] += score;
  return rewards;
}

/**
 * Advantages and returns of one answer's tokens (Schulman et al. 2016, "High-dimensional continuous
 * control using generalized advantage estimation", formulas 11 and 16), with V = 0 after the last token:
 *
 *     δ_t = r_t + γ V_{t+1} − V_t;  A_t = δ_t + γ λ A_{t+1};  returns = A + V
 *
 * Throws a `RangeError` where the lengths differ, or gamma or lambda is outside [0, 1].
 *
 * @example
 * ```ts
 * import { generalizedAdvantages } from "@graft/ml/rlhf";
 *
 * const rewards = Float32Array.of(0, 0, 1), values = Float32Array.of(0, 0.5, 0.5);
 * const { advantages } = generalizedAdvantages(rewards, values, { gamma: 1, lambda: 0.5 });
 * console.log(advantages); // [0.625, 0.25, 0.5]
 * ```
 */
export function generalizedAdvantages(
  rewards: PerToken,
  values: PerToken,
  options: AdvantageOptions = {},
): { advantages: PerToken; returns: PerToken } {
  const { gamma = 1, lambda = 0.95 } = options;
  for (const [name, value] of Object.entries({ gamma, lambda })) {
    if (!(value >= 0 && value <= 1)) {
      throw new RangeError(`generalizedAdvantages: ${name} must be in [0, 1], got ${value}`);
    }
  }
  sameLength("generalizedAdvantages", "rewards", rewards, "values", values);
  const advantages = new Float32Array(rewards.length);
  const returns = new Float32Array(rewards.length);
  let next = 0; // A_{t+1}
  for (let t = rewards.length - 1; t >= 0; t--) {
    const delta = rewards[t] + gamma * (values[t + 1] ?? 0) - values[t];
    next = delta + gamma * lambda * next;
    advantages[t] = next;
    returns[t] = next + values[t];
  }
  return { advantages, returns };
}

/**
 * Brings the numbers of all tokens of all answers together to variance 1, and to mean 0 unless
 * `keepMean`: `(x − mean) / √(var + 1e-8)`, with the unbiased variance. Where all are alike, as with
 * a single token, nothing is better than the rest, and the advantages are 0.
 */
export function whiten(rows: readonly PerToken[], keepMean = false): PerToken[] {
  let count = 0, sum = 0;
  for (const row of rows) {
    count += row.length;
    for (const x of row) sum += x;
  }
  const mean = sum / count;
  let squares = 0;
  for (const row of rows) for (const x of row) squares += (x - mean) ** 2;
  const variance = count > 1 ? squares / (count - 1) : 0;
  const scale = 1 / Math.sqrt(variance + 1e-8);
  return rows.map((row) => row.map((x) => (x - mean) * scale + (keepMean ? mean : 0)));
}

function sameLength(what: string, a: string, x: PerToken, b: string, y: PerToken): void {
  if (x.length !== y.length) {
    throw new RangeError(`${what}: ${a} and ${b} need one length, got ${x.length} and ${y.length}`);
  }
}

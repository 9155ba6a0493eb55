/**
 * Choosing the next token from one row of logits, on the host: the token has to be read anyway.
 *
 * @module
 */

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the most probable token (greedy). Default 0. */
  readonly temperature?: number;
  /** Only the k most probable tokens may come; 0: no limit. Default 0. */
  readonly topK?: number;
  /** Only the fewest tokens whose probabilities reach this sum may come (Holtzman et al. 2020). Default 1. */
  readonly topP?: number;
  /** Divides the positive logits of tokens seen, multiplies the negative (Keskar et al. 2019). Default 1. */
  readonly repetitionPenalty?: number;
}

/** Throws a `RangeError` that names the option at fault. */
export function checkSampling(options: SamplingOptions): void {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1 } = options;
  const need = (holds: boolean, what: string, got: number): void => {
    if (!holds) throw new RangeError(`generate: ${what}, got ${got}`);
  };
  need(temperature >= 0 && temperature < Infinity, "temperature must be 0 or more", temperature);
  need(Number.isInteger(topK) && topK >= 0, "topK must be a whole number from 0 on", topK);
  need(topP > 0 && topP <= 1, "topP must be in (0, 1]", topP);
  need(repetitionPenalty > 0, "repetitionPenalty must be above 0", repetitionPenalty);
}

/**
 * The next token, given its logits [V] (which are overwritten), the tokens `seen` so far, and a number
 * `draw` uniform in [0, 1).
 *
 * Throws an `Error` where a logit is NaN.
 *
 * @example
 * ```ts
 * import { sampleToken } from "@graft/ml/nn";
 *
 * console.log(sampleToken(Float32Array.of(0, 2, 1), {})); // 1
 * console.log(sampleToken(Float32Array.of(0, 2, 1), { temperature: 1, topK: 2 }, [], 0.99)); // 2
 * ```
 */
export function sampleToken(
  logits: Float32Array,
  options: SamplingOptions,
  seen: Iterable<number> = [],
  draw = 0,
): number {
  const { temperature = 0, topK = 0, topP = 1, repetitionPenalty = 1 } = options;
  if (repetitionPenalty !== 1) {
    for (const id of new Set(seen)) {
      logits[id] = logits[id] > 0 ? logits[id] / repetitionPenalty : logits[id] * repetitionPenalty;
    }
  }
  let best = 0;
  let high = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i];
    if (logit <= high) continue; // most are; NaN never is
    if (Number.isNaN(logit)) throw new Error(`generate: the logit of token ${i} is NaN`);
    best = i;
    high = logit;
  }
  if (temperature === 0) return best;

  let least = -Infinity;
  if (topK > 0 && topK < logits.length) least = logits.slice().sort()[logits.length - topK];
  let ids: number[] = [];
  let weights: number[] = [];
  let total = 0;
  for (let i = 0; i < logits.length; i++) {
    if (logits[i] < least) continue;
    const weight = Math.exp((logits[i] - high) / temperature);
    ids.push(i);
    weights.push(weight);
    total += weight;
  }
  if (topP < 1) {
    // Tokens below this weight sum to less than 1 - topP: none is needed to reach topP.
    const floor = (1 - topP) * total / ids.length;
    const order = ids.keys().filter((i) => weights[i] >= floor).toArray();
    order.sort((a, b) => weights[b] - weights[a] || ids[a] - ids[b]);
    let sum = 0, count = 0;
    while (count < order.length && sum < topP * total) sum += weights[order[count++]];
    order.length = Math.max(count, 1);
    ids = order.map((i) => ids[i]);
    weights = order.map((i) => weights[i]);
    total = sum;
  }
  let left = draw * total;
  for (let i = 0; i < ids.length; i++) {
    left -= weights[i];
    if (left < 0) return ids[i];
  }
  return ids[ids.length - 1];
}

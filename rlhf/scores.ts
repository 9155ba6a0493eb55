/**
 * Scores of answers: from a rule, a model or a person.
 *
 * @module
 */

/**
 * Scores as finite numbers, one for each of `count` answers.
 *
 * Throws a `RangeError` where there are more or fewer, or one is not finite.
 *
 * @example
 * ```ts
 * import { checkScores } from "@graft/ml/rlhf";
 *
 * console.log(checkScores("my reward", [1, -2], 2)); // Float64Array [1, -2]
 * ```
 */
export function checkScores(
  what: string,
  scores: ArrayLike<number>,
  count: number,
): Float64Array<ArrayBuffer> {
  if (scores?.length !== count) {
    throw new RangeError(
      `${what}: needs a score for each of ${count} answers, got ${scores?.length ?? scores}`,
    );
  }
  // Not by what it converts to: JSON has null for NaN, and that would be 0.
  const all = Array.from(scores);
  const bad = all.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) {
    throw new RangeError(`${what}: the score of answer ${bad} must be finite, got ${all[bad]}`);
  }
  return Float64Array.from(all);
}

/**
 * Random numbers of ranks.
 *
 * @module
 */

import type { GeneratorState } from "../core/mod.ts";

/** 2⁵³ by the golden ratio, made odd: seeds of neighbouring ranks lie far apart. */
const STEP = 5566755282872655n;

/**
 * The state by which rank `rank` goes on from rank 0's: its own stream at the same count. Rank 0's stays
 * what it is. A checkpoint so holds the state of rank 0 alone.
 *
 * @example
 * ```ts
 * import { rankGenerator } from "@graft/ml/dist";
 *
 * const saved = { seed: 7, counter: 12 };
 * console.assert(rankGenerator(saved, 0).seed === 7);
 * console.assert(rankGenerator(saved, 1).seed !== 7);
 * ```
 */
export function rankGenerator({ seed, counter }: GeneratorState, rank: number): GeneratorState {
  return { seed: Number((BigInt(seed) + BigInt(rank) * STEP) % 2n ** 53n), counter };
}

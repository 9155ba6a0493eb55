/**
 * How a thread knows that it is a rank.
 *
 * @module
 */

import type { SharedMemory } from "./memory.ts";

/** A thread's place among the ranks of its process. */
export interface LocalRank {
  readonly memory: SharedMemory;
  readonly rank: number;
  /** Whether it has a group that it has not closed. */
  open: boolean;
}

// On the global object, not in a variable: a program may load this module twice, from two addresses.
const key = Symbol.for("graft.dist.localRank");
const place = globalThis as { [key]?: LocalRank };

/** This thread's rank; null where it is none. */
export function localRank(): LocalRank | null {
  return place[key] ?? null;
}

/** Makes this thread a rank. */
export function becomeLocalRank(rank: LocalRank): void {
  place[key] = rank;
}

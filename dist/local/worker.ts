/**
 * What a thread of `runLocal` runs first.
 *
 * @module
 */

import { parentPort, workerData } from "node:worker_threads";
import { becomeLocalRank, type LocalRank } from "./context.ts";
import type { SharedMemory } from "./memory.ts";

/** What a thread is started with. */
export interface RankWork {
  readonly memory: SharedMemory;
  readonly rank: number;
  readonly module: string;
  readonly args: readonly unknown[];
}

/** What it sends when its work is done. */
export interface RankMessage {
  readonly result: unknown;
}

const work = workerData as RankWork;
const place: LocalRank = { memory: work.memory, rank: work.rank, open: false };
becomeLocalRank(place);
const { main } = await import(work.module);
const result: unknown = await main?.(...work.args);
if (place.open) {
  throw new Error("its work is done, but its group is open: end with `await group.close()`");
}
const message: RankMessage = { result };
parentPort!.postMessage(message);

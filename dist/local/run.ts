/**
 * Several ranks as threads of this process.
 *
 * @module
 */

import { Worker } from "node:worker_threads";
import { readLaunch } from "../mpi/environment.ts";
import { createSharedMemory, Meeting } from "./memory.ts";
import type { RankMessage, RankWork } from "./worker.ts";

/** Options of `runLocal`. */
export interface RunLocalOptions {
  /** How many ranks. */
  readonly size: number;
  /** What each rank's `main` is called with: anything that `structuredClone` copies. */
  readonly args?: readonly unknown[];
}

/** Node's workers take files and `data:` alone. */
function workerAddress(): URL {
  const address = new URL("./worker.ts", import.meta.url);
  if (address.protocol === "file:") return address;
  return new URL(
    `data:text/javascript,${encodeURIComponent(`import ${JSON.stringify(address.href)};`)}`,
  );
}

/**
 * Runs a module on `size` threads of this process, each of them one rank of a `local` group: the module's
 * `initProcessGroup()` gives it. The module is imported in each thread and its export `main`, where it
 * has one, called; what `main` returns comes back, by rank.
 *
 * Each rank opens a device of its own; `threadShare` says how many threads of the CPU it may take.
 * Threads share nothing else: a module's variables are each rank's own.
 *
 * @param module The module's address, such as `new URL("./worker.ts", import.meta.url)`.
 * @throws Error where a launcher of MPI has started this process as one of several, unless `GRAFT_DIST`
 * is `local`.
 * @throws Error, and ends the other ranks, as soon as one throws, ends before its work is done, or is
 * done without having closed its group; the message names the rank.
 *
 * @example
 * ```ts
 * import { runLocal } from "@graft/ml/dist";
 * import { assertEquals } from "@std/assert";
 *
 * const module = `
 *   import { initProcessGroup } from "@graft/ml/dist";
 *   export async function main(factor) {
 *     await using group = await initProcessGroup();
 *     return (await group.allReduce(Float32Array.of(factor * group.rank)))[0];
 *   }`;
 * const sums = await runLocal(new URL(`data:text/javascript,${encodeURIComponent(module)}`), {
 *   size: 3,
 *   args: [10],
 * });
 * assertEquals(sums, [30, 30, 30]);
 * ```
 */
export async function runLocal(
  module: URL,
  options: RunLocalOptions,
): Promise<unknown[]> {
  const { size, args = [] } = options;
  if (!(Number.isInteger(size) && size >= 1)) {
    throw new Error(`runLocal: needs a size of 1 or more, got ${size}`);
  }
  refuseRanks();
  const memory = createSharedMemory(size);
  const workers: Worker[] = [];
  const start = (rank: number) => {
    const work: RankWork = { memory, rank, module: module.href, args };
    const worker = new Worker(workerAddress(), { workerData: work });
    workers.push(worker);
    return settled(worker, rank, size);
  };
  try {
    return await Promise.all(Array.from({ length: size }, (_, rank) => start(rank)));
  } catch (error) {
    new Meeting(memory, 0).fail((error as Error).message);
    throw error;
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

/** Threads of several processes would be as many jobs that know nothing of each other. */
function refuseRanks(): void {
  const launch = readLaunch(Deno.env.get);
  const processes = launch?.size ?? 1;
  if (processes === 1 || Deno.env.get("GRAFT_DIST") === "local") return;
  throw new Error(
    `runLocal: ${
      launch!.launcher
    } started ${processes} of this process, and each would be a job of its ` +
      "own: ranks are processes or threads. Start one process, or leave out the threads (of " +
      "`deno task train`: --devices). GRAFT_DIST=local starts them all the same",
  );
}

/** What a rank's `main` gives. */
function settled(worker: Worker, rank: number, size: number): Promise<unknown> {
  const who = `runLocal: rank ${rank} of ${size}`;
  return new Promise((resolve, reject) => {
    worker.on("message", (message: RankMessage) => resolve(message.result));
    worker.on("error", (error: unknown) => {
      const reason = error instanceof Error ? error.message : String(error);
      reject(new Error(`${who} failed: ${reason}`, { cause: error }));
    });
    worker.on("exit", (code: number) => {
      reject(new Error(`${who} ended with ${code} before its work was done`));
    });
  });
}

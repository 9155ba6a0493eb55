/**
 * Ranks in one thread, for tests.
 *
 * @module
 */

import { Collectives } from "../collectives.ts";
import type { GroupOptions, ProcessGroup } from "../group.ts";
import { createSharedMemory } from "./memory.ts";
import { LocalTransport } from "./transport.ts";

/**
 * `size` ranks in this thread: what a test drives with `Promise.all`. They share the thread, so nothing
 * runs faster by it; `runLocal` starts ranks that have a thread each.
 *
 * @example
 * ```ts
 * import { localGroups } from "@graft/ml/dist";
 * import { assertEquals } from "@std/assert";
 *
 * const groups = localGroups(3);
 * const sums = await Promise.all(
 *   groups.map((group) => group.allReduce(Float32Array.of(group.rank, 1))),
 * );
 * assertEquals(sums[0], Float32Array.of(3, 3));
 * assertEquals(sums[2], sums[0]);
 * await Promise.all(groups.map((group) => group.close()));
 * ```
 */
export function localGroups(size: number, options: GroupOptions = {}): ProcessGroup[] {
  const memory = createSharedMemory(size);
  return Array.from(
    { length: size },
    (_, rank) => new Collectives(new LocalTransport(memory, rank), options),
  );
}

/**
 * The machine's processors, shared out.
 *
 * @module
 */

import type { ProcessGroup } from "./group.ts";

/**
 * How many threads of the CPU a rank may take, so that the ranks of one machine do not fight for them:
 * for `init({ threads: threadShare(group) })`.
 */
export function threadShare(group: Pick<ProcessGroup, "localSize">): number {
  return Math.max(1, Math.floor(navigator.hardwareConcurrency / group.localSize));
}

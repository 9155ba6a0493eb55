/**
 * A group of one: what a program gets that nobody launched as several.
 *
 * @module
 */

import { Collectives } from "./collectives.ts";
import type { GroupOptions, ProcessGroup } from "./group.ts";
import type { Transport } from "./transport.ts";

const alone: Transport = {
  backend: "single",
  rank: 0,
  size: 1,
  localRank: 0,
  localSize: 1,
  agree: () => Promise.resolve(true),
  allReduce: () => Promise.resolve(),
  broadcast: () => Promise.resolve(),
  allGather: (mine, all) => Promise.resolve(all.set(mine)),
  allToAll: (mine, all) => Promise.resolve(all.set(mine)),
  abort: () => {},
  close: () => Promise.resolve(),
};

/** A group of one. */
export function singleGroup(options: GroupOptions = {}): ProcessGroup {
  return new Collectives(alone, options);
}

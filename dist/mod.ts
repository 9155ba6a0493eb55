/**
 * Data parallelism: process groups over MPI, over the threads of one process, or of one rank.
 *
 * @module
 */

export type {
  AllReduceOptions,
  BroadcastOptions,
  CollectiveOptions,
  GroupOptions,
  ProcessGroup,
  ReduceOp,
  Reducible,
  Transferable,
} from "./group.ts";
export { type InitOptions, initProcessGroup } from "./init.ts";
export { supervise, type SuperviseOptions } from "./launch.ts";
export { localGroups } from "./local/groups.ts";
export { runLocal, type RunLocalOptions } from "./local/run.ts";
export { singleGroup } from "./single.ts";
export { threadShare } from "./threads.ts";
export { allGatherValues, broadcastValue } from "./values.ts";

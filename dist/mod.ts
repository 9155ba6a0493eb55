/**
 * Data parallelism: process groups over MPI, over the threads of one process, or of one rank.
 *
 * @module
 */

export type { Bucket, BucketEntry } from "./buckets.ts";
export {
  DistributedDataParallel,
  type MethodArguments,
  type MethodResult,
  type ParallelModule,
  type ParallelOptions,
} from "./ddp.ts";
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
export { onFirstRank } from "./first_rank.ts";
export { f16Compression } from "./f16.ts";
export type { GradientHook } from "./hooks.ts";
export { type InitOptions, initProcessGroup } from "./init.ts";
export { supervise, type SuperviseOptions } from "./launch.ts";
export type { JoinableBatch } from "./join.ts";
export { localGroups } from "./local/groups.ts";
export { runLocal, type RunLocalOptions } from "./local/run.ts";
export { reduceMetrics } from "./metrics.ts";
export { powerSgd, type PowerSgdOptions } from "./power_sgd.ts";
export { rankGenerator } from "./random.ts";
export { singleGroup } from "./single.ts";
export { threadShare } from "./threads.ts";
export { allGatherValues, broadcastValue } from "./values.ts";

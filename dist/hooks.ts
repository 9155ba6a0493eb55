/**
 * Hooks: how a bucket of gradients gets from rank to rank.
 *
 * @module
 */

import type { Bucket } from "./buckets.ts";
import type { ProcessGroup } from "./group.ts";

/** How a bucket is reduced; see `ParallelOptions`. One object belongs to one wrapped module. */
export interface GradientHook {
  /** What it does and how, for the comparison between ranks: "f16". */
  readonly name: string;
  /**
   * Gives the sum over all ranks of their `data` [bucket.length], or what comes near it; the same bits
   * on every rank. `data` may be overwritten.
   */
  reduce(
    bucket: Bucket,
    data: Float32Array<ArrayBuffer>,
    group: ProcessGroup,
  ): Promise<Float32Array<ArrayBuffer>>;
}

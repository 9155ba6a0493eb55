/**
 * What a backend of dist brings: bytes from rank to rank, one collective at a time. Order, checks and
 * time limits are `Collectives`' business.
 *
 * @module
 */

import type { ProcessGroup, ReduceOp, Reducible } from "./group.ts";

/** The bare collectives. Arrays are never empty, and the calls of all ranks are known to fit. */
export interface Transport
  extends Pick<ProcessGroup, "backend" | "rank" | "size" | "localRank" | "localSize"> {
  /** Whether every rank gave the same number (an integer of up to 53 bits); a barrier, too. */
  agree(hash: number): Promise<boolean>;
  /** Joins the arrays of all ranks in place. */
  allReduce(data: Reducible, op: ReduceOp): Promise<void>;
  /** Gives every rank the bytes of `root`, in place. */
  broadcast(bytes: Uint8Array, root: number): Promise<void>;
  /** Puts every rank's bytes into `all`, by rank. */
  allGather(mine: Uint8Array, all: Uint8Array): Promise<void>;
  /** Puts part r of every rank's bytes, on rank r, into `all`, by rank. */
  allToAll(mine: Uint8Array, all: Uint8Array): Promise<void>;
  /** Which ranks have not come to the present collective, where the backend can tell. */
  missing?(): number[];
  /** Ends the job, for a collective does not end: the other ranks fail for `reason`. */
  abort(reason: string): void;
  /** Gives back what the group holds. All ranks are known to be here. */
  close(): Promise<void>;
}

/**
 * What ranks say to each other: the interface that every backend of dist keeps.
 *
 * @module
 */

/** What `allReduce` takes: arrays that MPI has a type for. */
export type Reducible =
  | Float32Array
  | Float64Array
  | Int32Array
  | Uint32Array
  | Uint8Array;

/** What `broadcast` and `allGather` take: bytes of any kind. */
export type Transferable =
  | Reducible
  | Int8Array
  | Uint8ClampedArray
  | Int16Array
  | Uint16Array
  | Float16Array
  | BigInt64Array
  | BigUint64Array;

/** How `allReduce` joins the ranks' values. */
export type ReduceOp = "sum" | "max";

/** Options of every collective. */
export interface CollectiveOptions {
  /**
   * What the data is, for errors and the watchdog: `"bucket 3: lm_head.weight"`. It must be the same on
   * every rank, and is compared.
   */
  readonly label?: string;
  /** How long the collective may take, in ms, from its start; the group's own limit by default. */
  readonly timeout?: number;
}

/** Options of `allReduce`. */
export interface AllReduceOptions extends CollectiveOptions {
  /** `sum` by default. */
  readonly op?: ReduceOp;
}

/** Options of `broadcast`. */
export interface BroadcastOptions extends CollectiveOptions {
  /** The rank whose data the others get: 0 by default. */
  readonly root?: number;
}

/**
 * The ranks of a job. Each rank holds its own `ProcessGroup` and calls the same collectives in the
 * same order, with data of the same type and length; a call that differs makes the same error on every
 * rank, naming the first rank that differs and both calls.
 *
 * Collectives run one at a time, in the order of the calls. A second one may be called before the
 * first is done: that is how communication overlaps with what the caller computes.
 *
 * **Buffers.** From the call until its promise settles the array is the group's: it must not be read,
 * written, transferred or resized (so no view of a WebAssembly memory that grows meanwhile). It may
 * stand on shared memory or not. `allReduce` and `broadcast` write their result into it. Arrays may be
 * empty.
 *
 * **Failures.** A collective that fails leaves the group unusable, and later calls reject with the same
 * error. Where a rank is lost, the rest of the job ends: by the launcher for MPI, by the error of
 * `runLocal` for workers.
 */
export interface ProcessGroup {
  /** Who carries the bytes; `single` is a group of one. */
  readonly backend: "mpi" | "local" | "single";
  /** This rank: 0 to `size` − 1. */
  readonly rank: number;
  /** How many ranks there are. */
  readonly size: number;
  /** This rank among those of its machine. */
  readonly localRank: number;
  /** How many ranks share this machine. */
  readonly localSize: number;

  /**
   * Joins the arrays of all ranks element by element, in place; every rank gets the same bits, and gets
   * them again in a second run of as many ranks.
   *
   * @throws Error if a rank calls something else, is lost, or the collective takes too long.
   */
  allReduce<T extends Reducible>(data: T, options?: AllReduceOptions): Promise<T>;

  /**
   * Gives every rank the array of `root`, in place.
   *
   * @throws Error if a rank calls something else, is lost, or the collective takes too long.
   */
  broadcast<T extends Transferable>(data: T, options?: BroadcastOptions): Promise<T>;

  /**
   * The arrays of all ranks, by rank, as new arrays. All have one length; `allGatherValues` is for what
   * differs in size.
   *
   * @throws Error if a rank calls something else, is lost, or the collective takes too long.
   */
  allGather<T extends Transferable>(data: T, options?: CollectiveOptions): Promise<T[]>;

  /**
   * Deals each rank's array out, in `size` parts of one length: rank r gets part r of every rank's, by
   * rank, as a new array.
   *
   * @throws RangeError if the array does not have `size` parts of one length.
   * @throws Error if a rank calls something else, is lost, or the collective takes too long.
   */
  allToAll<T extends Transferable>(data: T, options?: CollectiveOptions): Promise<T>;

  /**
   * Resolves once every rank has called it.
   *
   * @throws Error if a rank calls something else, is lost, or it takes too long.
   */
  barrier(options?: CollectiveOptions): Promise<void>;

  /**
   * Ends the group, together with the other ranks, after what was called before. Under MPI a process
   * that exits without it takes the whole job down, so that no half of a job ends as if all were well.
   * A second call does nothing.
   *
   * @throws Error if a rank calls something else, is lost, or it takes too long.
   */
  close(): Promise<void>;

  /** `close()`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Options of a group. */
export interface GroupOptions {
  /**
   * How long a collective may take, in ms, before the watchdog ends the job. 600,000 by default, or the
   * environment's `GRAFT_DIST_TIMEOUT` (in seconds). It covers waiting for the slowest rank, so it must
   * exceed the longest thing that one rank does alone (an evaluation, a checkpoint).
   */
  readonly timeout?: number;
}

import { permute } from "./permute.ts";

/** Which of several ranks one is: a process group, or two numbers. */
export interface Shard {
  /** 0 to `size` − 1. */
  readonly rank: number;
  /** How many ranks there are. */
  readonly size: number;
}

/** Throws a `RangeError` where `rank` is none of `size` ranks. */
export function checkShard(what: string, { rank, size }: Shard): void {
  if (!(Number.isSafeInteger(size) && size > 0)) {
    throw new RangeError(`${what}: needs a number of ranks from 1 on, got ${size}`);
  }
  if (!(Number.isSafeInteger(rank) && rank >= 0 && rank < size)) {
    throw new RangeError(`${what}: needs a rank from 0 to ${size - 1}, got ${rank}`);
  }
}

/** How a {@linkcode DistributedSampler} deals. */
export interface DistributedSamplerOptions {
  /** Decides the order; 0 by default. */
  readonly seed?: number;
  /** False: the data's own order. */
  readonly shuffle?: boolean;
  /**
   * Where the length is no multiple of the number of ranks: `pad` gives the first of the order again,
   * so that all ranks have as many; `drop` leaves the last of the order out; `none` gives some ranks one
   * more, which is how one evaluates. Default `pad`.
   */
  readonly uneven?: "pad" | "drop" | "none";
}

/**
 * Deals the places 0 to `length` − 1 out to ranks, each epoch in another order. Every rank makes the same
 * order and takes each `size`-th place from its own on.
 *
 * A {@linkcode DataLoader} needs none: its `shard` shares out the rows of each batch, without any row
 * twice. This is for data of other kinds.
 *
 * @example
 * ```ts
 * import { DistributedSampler } from "@graft/ml/data";
 *
 * const prompts = ["a", "b", "c", "d", "e"];
 * const ranks = [0, 1].map((rank) =>
 *   new DistributedSampler(prompts.length, { rank, size: 2 }, { uneven: "none" })
 * );
 * const seen = ranks.flatMap((sampler) => [...sampler.epoch(3)]);
 * console.assert(seen.toSorted().join() === "0,1,2,3,4");
 * ```
 */
export class DistributedSampler {
  /** Places an epoch has on this rank. */
  readonly length: number;
  readonly #total: number;
  readonly #shard: Shard;
  readonly #seed: number;
  readonly #shuffle: boolean;
  readonly #places: number;

  /**
   * A sampler for one rank.
   *
   * @throws RangeError if an argument is not a number of its kind.
   */
  constructor(length: number, shard: Shard, options: DistributedSamplerOptions = {}) {
    const { seed = 0, shuffle = true, uneven = "pad" } = options;
    if (!(Number.isSafeInteger(length) && length > 0)) {
      throw new RangeError(`DistributedSampler: needs a length from 1 on, got ${length}`);
    }
    if (!Number.isSafeInteger(seed)) {
      throw new RangeError(`DistributedSampler: seed needs an integer, got ${seed}`);
    }
    checkShard("DistributedSampler", shard);
    const { rank, size } = shard;
    const turns = length / size;
    this.#places = length;
    this.#total = uneven === "none"
      ? length
      : size * (uneven === "pad" ? Math.ceil(turns) : Math.floor(turns));
    this.length = Math.max(0, Math.ceil((this.#total - rank) / size));
    this.#shard = { rank, size };
    this.#seed = seed;
    this.#shuffle = shuffle;
  }

  /** This rank's places in epoch `number`, from 0. */
  *epoch(number: number): Generator<number> {
    for (let turn = this.#shard.rank; turn < this.#total; turn += this.#shard.size) {
      const at = turn % this.#places;
      yield this.#shuffle ? permute(at, this.#places, this.#seed, number) : at;
    }
  }
}

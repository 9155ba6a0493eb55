import { checkIndex, type Dataset, IGNORED_TARGET, type TokenWindow } from "./packing.ts";

/** Rows of a dataset, as flat row-major arrays. */
export interface Batch {
  /** Token ids, [B, T]. */
  readonly inputs: Int32Array<ArrayBuffer>;
  /** The token after each, or {@linkcode IGNORED_TARGET}, [B, T]. */
  readonly targets: Int32Array<ArrayBuffer>;
  /** B rows of T tokens. */
  readonly shape: readonly [batch: number, sequence: number];
  /** How many targets count. */
  readonly targetCount: number;
}

/** How a {@linkcode DataLoader} makes batches. */
export interface DataLoaderOptions {
  /** Rows in a batch. */
  readonly batchSize: number;
  /** Decides the order; 0 by default. */
  readonly seed?: number;
  /** False: the dataset's own order. */
  readonly shuffle?: boolean;
  /** How many times the dataset is gone through; without end by default. */
  readonly epochs?: number;
}

/** Where a {@linkcode DataLoader} stands: a plain object, for a checkpoint. */
export interface DataLoaderState {
  /** Rows taken since the start, over all epochs. */
  readonly rows: number;
  /** What the order depends on. */
  readonly seed: number;
  /** As the seed. */
  readonly shuffle: boolean;
  /** As the seed. */
  readonly length: number;
  /** As the seed. */
  readonly sequenceLength: number;
}

/**
 * Goes through a dataset in batches of one shape. Each epoch takes every row once, in an order that
 * depends on seed and epoch alone; a batch may hold the end of one epoch and the start of the next,
 * so no row is left out. After the last epoch a batch that is not full gets rows of ignored targets.
 *
 * `state()` in the middle of a loop and `load()` on a new loader go on at the same row.
 *
 * @example
 * ```ts
 * import { DataLoader, pack } from "@graft/ml/data";
 *
 * const dataset = pack([{ ids: new Int32Array(801).fill(5), promptLength: 1 }], 16);
 * const loader = new DataLoader(dataset, { batchSize: 4, epochs: 1 });
 * let batches = 0;
 * for (const batch of loader) {
 *   console.assert(batch.shape.join() === "4,16");
 *   batches++;
 * }
 * console.assert(batches === 13);
 * ```
 */
export class DataLoader implements Iterable<Batch> {
  /** What is gone through. */
  readonly dataset: Dataset;
  /** Rows in a batch. */
  readonly batchSize: number;
  readonly #seed: number;
  readonly #shuffle: boolean;
  readonly #epochs: number;
  #rows = 0;

  /**
   * Starts at the first row of the first epoch.
   *
   * @throws RangeError if an option is not a number of its kind, or the dataset is empty.
   */
  constructor(dataset: Dataset, options: DataLoaderOptions) {
    const { batchSize, seed = 0, shuffle = true, epochs = Infinity } = options;
    if (!Number.isSafeInteger(batchSize) || batchSize < 1) {
      throw new RangeError(`DataLoader: batchSize needs a positive integer, got ${batchSize}`);
    }
    if (!Number.isSafeInteger(seed)) {
      throw new RangeError(`DataLoader: seed needs an integer, got ${seed}`);
    }
    if (!(epochs === Infinity || (Number.isSafeInteger(epochs) && epochs > 0))) {
      throw new RangeError(`DataLoader: epochs needs a positive integer, got ${epochs}`);
    }
    if (dataset.length < 1) throw new RangeError("DataLoader: the dataset is empty");
    this.dataset = dataset;
    this.batchSize = batchSize;
    this.#seed = seed;
    this.#shuffle = shuffle;
    this.#epochs = epochs;
  }

  /** The epoch of the next row, from 0. */
  get epoch(): number {
    return Math.floor(this.#rows / this.dataset.length);
  }

  /** The batches from where the loader stands. */
  *[Symbol.iterator](): Iterator<Batch> {
    const end = this.#epochs * this.dataset.length;
    while (this.#rows < end) {
      const rows = Math.min(this.batchSize, end - this.#rows);
      const batch = this.#batch(this.#rows, rows);
      this.#rows += rows;
      yield batch;
    }
  }

  /** Where the loader stands: after the batch that was taken last. */
  state(): DataLoaderState {
    const { length, sequenceLength } = this.dataset;
    return { rows: this.#rows, seed: this.#seed, shuffle: this.#shuffle, length, sequenceLength };
  }

  /**
   * Goes on where `state()` was taken. The batch size may be another one.
   *
   * @throws Error if the state is of other data or another order; the message lists what differs.
   */
  load(state: DataLoaderState): void {
    const own = this.state();
    const differing = (["seed", "shuffle", "length", "sequenceLength"] as const)
      .filter((key) => state[key] !== own[key])
      .map((key) => `${key} ${state[key]}, here ${own[key]}`);
    if (differing.length > 0) {
      throw new Error(`DataLoader.load: the state is of other data: ${differing.join("; ")}`);
    }
    if (!Number.isSafeInteger(state.rows) || state.rows < 0) {
      throw new Error(`DataLoader.load: rows needs a non-negative integer, got ${state.rows}`);
    }
    this.#rows = state.rows;
  }

  #batch(first: number, rows: number): Batch {
    const { length, sequenceLength } = this.dataset;
    const inputs = new Int32Array(this.batchSize * sequenceLength);
    const targets = new Int32Array(this.batchSize * sequenceLength).fill(IGNORED_TARGET);
    for (let row = 0; row < rows; row++) {
      const epoch = Math.floor((first + row) / length);
      const place = (first + row) % length;
      const index = this.#shuffle ? permute(place, length, this.#seed, epoch) : place;
      const window = this.dataset.window(index, epoch);
      inputs.set(window.inputs, row * sequenceLength);
      targets.set(window.targets, row * sequenceLength);
    }
    let targetCount = 0;
    for (const target of targets) if (target !== IGNORED_TARGET) targetCount++;
    return { inputs, targets, shape: [this.batchSize, sequenceLength], targetCount };
  }
}

/**
 * Mixes a share of general windows into a dataset, so that a model does not forget what it knew. An
 * epoch takes every window of `main` once; the general ones differ from epoch to epoch until all
 * have come.
 *
 * @param share of the windows that are general ones, from 0 up to but not 1.
 * @throws RangeError if `share` is out of its range or the sequence lengths differ.
 *
 * @example
 * ```ts
 * import { mix, pack } from "@graft/ml/data";
 *
 * const main = pack([{ ids: new Int32Array(91), promptLength: 1 }], 10);
 * const general = pack([{ ids: new Int32Array(501), promptLength: 1 }], 10);
 * console.assert(mix(main, general, 0.1).length === 10);
 * ```
 */
export function mix(main: Dataset, general: Dataset, share: number, seed: number = 0): Dataset {
  if (!(share >= 0 && share < 1)) {
    throw new RangeError(`mix: share needs to be at least 0 and below 1, got ${share}`);
  }
  if (main.sequenceLength !== general.sequenceLength) {
    throw new RangeError(
      `mix: needs windows of one length, got ${main.sequenceLength} and ${general.sequenceLength}`,
    );
  }
  const added = general.length === 0 ? 0 : Math.round(main.length * share / (1 - share));
  const length = main.length + added;
  return {
    length,
    sequenceLength: main.sequenceLength,
    window(index: number, epoch: number): TokenWindow {
      checkIndex(index, length);
      // General windows lie evenly between the others: the k-th stands where k/added is passed.
      const before = Math.floor(index * added / length);
      const isGeneral = Math.floor((index + 1) * added / length) > before;
      if (!isGeneral) return main.window(index - before, epoch);
      const count = epoch * added + before;
      const round = Math.floor(count / general.length);
      return general.window(permute(count % general.length, general.length, seed, round), round);
    },
  };
}

/**
 * Where `index` goes in a permutation of `length` places that depends on seed and round: a Feistel
 * network over the next even number of bits, walked until it falls inside. Needs no memory.
 */
function permute(index: number, length: number, seed: number, round: number): number {
  let half = 1;
  while (4 ** half < length) half++;
  const mask = 2 ** half - 1;
  const key = hash(hash(seed | 0, Math.floor(seed / 2 ** 32) | 0), round);
  let value = index;
  do {
    let left = Math.floor(value / 2 ** half), right = value & mask;
    for (let i = 0; i < 6; i++) {
      [left, right] = [right, (left ^ hash(key + Math.imul(i, 0x9e3779b9), right)) & mask];
    }
    value = left * 2 ** half + right;
  } while (value >= length);
  return value;
}

/** Mixes two integers into one of 32 bits. */
function hash(a: number, b: number): number {
  let x = Math.imul(a ^ 0x2545f491, 0x85ebca6b) ^ Math.imul(b + 0x165667b1, 0xc2b2ae35);
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return x ^ (x >>> 16);
}

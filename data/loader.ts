import { checkIndex, type Dataset, IGNORED_TARGET, type TokenWindow } from "./packing.ts";
import { permute } from "./permute.ts";
import { checkShard, type Shard } from "./sampler.ts";

/** Rows of a dataset, as flat row-major arrays. */
export interface Batch {
  /** Token ids, [B, T]. */
  readonly inputs: Int32Array<ArrayBuffer>;
  /** The token after each, or {@linkcode IGNORED_TARGET}, [B, T]. */
  readonly targets: Int32Array<ArrayBuffer>;
  /** As in {@linkcode TokenWindow}, [B, T]; absent where no row has it. */
  readonly documents?: Int32Array<ArrayBuffer>;
  /** B rows of T tokens. */
  readonly shape: readonly [batch: number, sequence: number];
  /** How many targets count. */
  readonly targetCount: number;
}

/** How a {@linkcode DataLoader} makes batches. */
export interface DataLoaderOptions {
  /** Rows in a batch: of all ranks together, where there are several. */
  readonly batchSize: number;
  /** Decides the order; 0 by default. */
  readonly seed?: number;
  /** False: the dataset's own order. */
  readonly shuffle?: boolean;
  /** How many times the dataset is gone through; without end by default. */
  readonly epochs?: number;
  /**
   * Which of the ranks this is: it gets its share of each batch's rows, each row goes to one rank. A
   * share has batchSize / size rows, rounded up, of which those that are not there have ignored
   * targets. Default: the only one. A process group is one.
   */
  readonly shard?: Shard;
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
  readonly #shard: Shard;
  #rows = 0;

  /**
   * Starts at the first row of the first epoch.
   *
   * @throws RangeError if an option is not a number of its kind, or the dataset is empty.
   */
  constructor(dataset: Dataset, options: DataLoaderOptions) {
    const { batchSize, seed = 0, shuffle = true, epochs = Infinity } = options;
    const { rank, size } = options.shard ?? { rank: 0, size: 1 };
    checkShard("DataLoader", { rank, size });
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
    this.#shard = { rank, size };
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

  /** This rank's share of the batch of `rows` rows from row `first` on. */
  #batch(first: number, rows: number): Batch {
    const { length, sequenceLength } = this.dataset;
    const { rank, size } = this.#shard;
    const most = Math.ceil(this.batchSize / size);
    const inputs = new Int32Array(most * sequenceLength);
    const targets = new Int32Array(most * sequenceLength).fill(IGNORED_TARGET);
    let documents: Int32Array<ArrayBuffer> | null = null;
    const from = first + Math.floor(rows * rank / size);
    const end = first + Math.floor(rows * (rank + 1) / size);
    for (let row = from; row < end; row++) {
      const epoch = Math.floor(row / length);
      const place = row % length;
      const index = this.#shuffle ? permute(place, length, this.#seed, epoch) : place;
      const window = this.dataset.window(index, epoch);
      inputs.set(window.inputs, (row - from) * sequenceLength);
      targets.set(window.targets, (row - from) * sequenceLength);
      if (!window.documents) continue;
      documents ??= new Int32Array(inputs.length);
      documents.set(window.documents, (row - from) * sequenceLength);
    }
    let targetCount = 0;
    for (const target of targets) if (target !== IGNORED_TARGET) targetCount++;
    const shape = [most, sequenceLength] as const;
    return { inputs, targets, ...documents && { documents }, shape, targetCount };
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

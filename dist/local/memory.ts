/**
 * The memory that the ranks of one process share, and how they meet in it.
 *
 * @module
 */

/** Bytes of one rank's staging half: small enough for a cache, large enough that meetings are rare. */
const STAGE_BYTES = 2 ** 21;
const TEXT_BYTES = 8192;

/** Words of the control block; each rank's own words follow. */
const WORD = { generation: 0, arrived: 1, failed: 2, text: 3, ranks: 16 } as const;

/** What a thread needs to be a rank: it survives a postMessage. */
export interface SharedMemory {
  readonly size: number;
  /** Words: the control block, then for each rank the meeting it came to last. */
  readonly control: SharedArrayBuffer;
  /** Two numbers (f64) for each rank. */
  readonly hashes: SharedArrayBuffer;
  /** Why the group has failed. */
  readonly text: SharedArrayBuffer;
  /** For each rank two halves, used in turn. */
  readonly stages: SharedArrayBuffer;
}

/** Memory for so many ranks. */
export function createSharedMemory(size: number): SharedMemory {
  return {
    size,
    control: new SharedArrayBuffer((WORD.ranks + size) * 4),
    hashes: new SharedArrayBuffer(size * 2 * 8),
    text: new SharedArrayBuffer(TEXT_BYTES),
    stages: new SharedArrayBuffer(size * 2 * STAGE_BYTES),
  };
}

/** One rank's view of the memory. */
export class Meeting {
  readonly #memory: SharedMemory;
  readonly #words: Int32Array;
  readonly #rank: number;

  constructor(memory: SharedMemory, rank: number) {
    this.#memory = memory;
    this.#words = new Int32Array(memory.control);
    this.#rank = rank;
  }

  /** Resolves once every rank has called it. Throws where the group has failed. */
  async meet(): Promise<void> {
    const words = this.#words;
    const generation = Atomics.load(words, WORD.generation);
    this.check();
    Atomics.store(words, WORD.ranks + this.#rank, generation + 1);
    if (Atomics.add(words, WORD.arrived, 1) === this.#memory.size - 1) {
      Atomics.store(words, WORD.arrived, 0);
      Atomics.add(words, WORD.generation, 1);
      Atomics.notify(words, WORD.generation);
    } else {
      while (Atomics.load(words, WORD.generation) === generation) {
        await Atomics.waitAsync(words, WORD.generation, generation).value;
      }
    }
    this.check();
  }

  /** The ranks that have not come to the present meeting. */
  missing(): number[] {
    const now = Atomics.load(this.#words, WORD.generation) + 1;
    const ranks = Array.from({ length: this.#memory.size }, (_, rank) => rank);
    return ranks.filter((rank) => Atomics.load(this.#words, WORD.ranks + rank) !== now);
  }

  /** Makes every rank's present and later meetings throw. The first reason stays. */
  fail(reason: string): void {
    const words = this.#words;
    if (Atomics.compareExchange(words, WORD.failed, 0, 1) !== 0) return;
    const bytes = new TextEncoder().encode(reason).subarray(0, TEXT_BYTES);
    new Uint8Array(this.#memory.text).set(bytes);
    Atomics.store(words, WORD.text, bytes.length);
    Atomics.store(words, WORD.failed, 2);
    Atomics.add(words, WORD.generation, 1);
    Atomics.notify(words, WORD.generation);
  }

  /** Throws where the group has failed. */
  check(): void {
    if (Atomics.load(this.#words, WORD.failed) !== 2) return;
    const length = Atomics.load(this.#words, WORD.text);
    const text = new Uint8Array(this.#memory.text).slice(0, length);
    throw new Error(new TextDecoder().decode(text));
  }
}

/** A rank's half of the staging memory, as a view of `make`'s kind. */
export function stageOf<T>(
  memory: SharedMemory,
  rank: number,
  half: number,
  make: { new (buffer: SharedArrayBuffer, offset: number, length: number): T },
  bytesPerElement: number,
): T {
  const offset = (rank * 2 + half) * STAGE_BYTES;
  return new make(memory.stages, offset, STAGE_BYTES / bytesPerElement);
}

/** How many elements of so many bytes a half holds. */
export function stageLength(bytesPerElement: number): number {
  return STAGE_BYTES / bytesPerElement;
}

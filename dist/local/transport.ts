/**
 * Collectives over shared memory: each rank copies a piece into its stage, joins its share of all
 * stages, and copies the shares out.
 *
 * Stages have two halves that are used in turn, and a meeting lies between two uses of either: so no
 * rank writes where another still reads.
 *
 * @module
 */

import type { ReduceOp, Reducible } from "../group.ts";
import type { Transport } from "../transport.ts";
import { Meeting, type SharedMemory, stageLength, stageOf } from "./memory.ts";
import { reduceRange } from "./reduce.ts";

/** A rank among those that share `memory`. */
export class LocalTransport implements Transport {
  readonly backend = "local";
  readonly rank: number;
  readonly size: number;
  readonly localRank: number;
  readonly localSize: number;
  readonly #memory: SharedMemory;
  readonly #meeting: Meeting;
  readonly #hashes: Float64Array;
  readonly #closed: () => void;
  #half = 0;

  constructor(memory: SharedMemory, rank: number, closed: () => void = () => {}) {
    this.#closed = closed;
    this.rank = this.localRank = rank;
    this.size = this.localSize = memory.size;
    this.#memory = memory;
    this.#meeting = new Meeting(memory, rank);
    this.#hashes = new Float64Array(memory.hashes);
  }

  async agree(hash: number): Promise<boolean> {
    const half = this.#turn();
    this.#hashes[half * this.size + this.rank] = hash;
    await this.#meeting.meet();
    return this.#hashes.subarray(half * this.size, (half + 1) * this.size).every((h) => h === hash);
  }

  async allReduce(data: Reducible, op: ReduceOp): Promise<void> {
    const make = data.constructor as Float32ArrayConstructor;
    const piece = stageLength(data.BYTES_PER_ELEMENT);
    for (let start = 0; start < data.length; start += piece) {
      const length = Math.min(piece, data.length - start);
      const half = this.#turn();
      const stages = Array.from(
        { length: this.size },
        (_, rank) => stageOf(this.#memory, rank, half, make, data.BYTES_PER_ELEMENT),
      );
      const share = (rank: number) => Math.floor(length * rank / this.size);
      stages[this.rank].set(data.subarray(start, start + length) as Float32Array);
      await this.#meeting.meet();
      reduceRange(stages[this.rank], stages, op, share(this.rank), share(this.rank + 1));
      await this.#meeting.meet();
      for (const [rank, stage] of stages.entries()) {
        data.set(stage.subarray(share(rank), share(rank + 1)), start + share(rank));
      }
    }
  }

  async broadcast(bytes: Uint8Array, root: number): Promise<void> {
    const piece = stageLength(1);
    for (let start = 0; start < bytes.length; start += piece) {
      const part = bytes.subarray(start, start + piece);
      const stage = stageOf(this.#memory, root, this.#turn(), Uint8Array, 1);
      if (this.rank === root) stage.set(part);
      await this.#meeting.meet();
      if (this.rank !== root) part.set(stage.subarray(0, part.length));
    }
  }

  async allGather(mine: Uint8Array, all: Uint8Array): Promise<void> {
    const piece = stageLength(1);
    for (let start = 0; start < mine.length; start += piece) {
      const half = this.#turn();
      const part = mine.subarray(start, start + piece);
      stageOf(this.#memory, this.rank, half, Uint8Array, 1).set(part);
      await this.#meeting.meet();
      for (let rank = 0; rank < this.size; rank++) {
        const stage = stageOf(this.#memory, rank, half, Uint8Array, 1);
        all.set(stage.subarray(0, part.length), rank * mine.length + start);
      }
    }
  }

  async allToAll(mine: Uint8Array, all: Uint8Array): Promise<void> {
    const length = mine.length / this.size; // of a part
    const piece = Math.max(1, Math.floor(stageLength(1) / this.size));
    for (let start = 0; start < length; start += piece) {
      const count = Math.min(piece, length - start);
      const half = this.#turn();
      const own = stageOf(this.#memory, this.rank, half, Uint8Array, 1);
      for (let rank = 0; rank < this.size; rank++) {
        const from = rank * length + start;
        own.set(mine.subarray(from, from + count), rank * count);
      }
      await this.#meeting.meet();
      for (let rank = 0; rank < this.size; rank++) {
        const stage = stageOf(this.#memory, rank, half, Uint8Array, 1);
        const from = this.rank * count;
        all.set(stage.subarray(from, from + count), rank * length + start);
      }
    }
  }

  missing(): number[] {
    return this.#meeting.missing();
  }

  abort(reason: string): void {
    this.#meeting.fail(reason);
  }

  close(): Promise<void> {
    this.#closed();
    return Promise.resolve();
  }

  /** The half whose turn it is. */
  #turn(): number {
    this.#half = 1 - this.#half;
    return this.#half;
  }
}

/**
 * The one WASM memory of the backend, and the allocator over it.
 *
 * @module
 */

import type { MemoryType } from "../wasm.ts";

const PAGE = 65536;
/** Addresses below are the scheduler's, and a margin for reads that begin before a buffer. */
export const RESERVED = 4096;
/** Bytes at the end that no block takes: kernels may read beyond a buffer's last vector. */
const MARGIN = 4096;
const ALIGN = 64;
/** The memory grows by at least this much. */
const GROWTH = 256 * PAGE;

interface Block {
  at: number;
  bytes: number;
}

/** A growing memory of at most 4 GiB, in which blocks are allocated, first fit, and freed. */
export class Memory {
  readonly memory: WebAssembly.Memory;
  readonly type: MemoryType;
  /** Free blocks in order of address; no two touch. */
  readonly #free: Block[];
  readonly #sizes = new Map<number, number>();

  constructor(shared: boolean) {
    let maximum = 65536;
    for (;;) {
      try {
        this.memory = new WebAssembly.Memory({ initial: 256, maximum, shared });
        break;
      } catch (error) {
        // Some browsers refuse to set so much address space aside.
        if (maximum <= 4096) throw error;
        maximum /= 2;
      }
    }
    this.type = { shared, maximum };
    this.#free = [{ at: RESERVED, bytes: 256 * PAGE - RESERVED - MARGIN }];
  }

  /** The memory as it is now; growing makes older views too short. */
  get buffer(): ArrayBuffer | SharedArrayBuffer {
    return this.memory.buffer;
  }

  /** The most bytes that can be allocated. */
  get limit(): number {
    return this.type.maximum * PAGE - RESERVED - MARGIN;
  }

  /** The address of `bytes` fresh bytes, aligned to 64. */
  allocate(bytes: number): number {
    const need = Math.max(ALIGN, Math.ceil(bytes / ALIGN) * ALIGN);
    let index = this.#free.findIndex((b) => b.bytes >= need);
    if (index < 0) {
      this.#grow(need);
      index = this.#free.length - 1;
    }
    const block = this.#free[index];
    const { at } = block;
    if (block.bytes === need) this.#free.splice(index, 1);
    else {
      block.at += need;
      block.bytes -= need;
    }
    this.#sizes.set(at, need);
    return at;
  }

  /** Gives a block back. */
  free(at: number): void {
    const bytes = this.#sizes.get(at);
    if (bytes === undefined) throw new Error(`free: no block is allocated at ${at}`);
    this.#sizes.delete(at);
    this.#insert({ at, bytes });
  }

  /** Copies the bytes of `data` to address `at`. */
  write(at: number, data: ArrayBufferView): void {
    const from = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    new Uint8Array(this.buffer, at, data.byteLength).set(from);
  }

  /** A copy of `bytes` bytes from address `at`. */
  read(at: number, bytes: number): ArrayBuffer {
    const out = new Uint8Array(bytes);
    out.set(new Uint8Array(this.buffer, at, bytes));
    return out.buffer;
  }

  #grow(need: number): void {
    const before = this.buffer.byteLength;
    const last = this.#free[this.#free.length - 1];
    const tail = last !== undefined && last.at + last.bytes === before - MARGIN ? last.bytes : 0;
    const least = Math.ceil((need - tail) / PAGE);
    const room = this.type.maximum - before / PAGE;
    const free = this.#free.reduce((n, b) => n + b.bytes, 0);
    const fail = (cause?: unknown) =>
      new Error(
        `allocate: needs ${need} bytes in one piece; ${
          this.limit - (before - RESERVED - MARGIN) + free
        } of at most ${this.limit} are free`,
        { cause },
      );
    if (least > room) throw fail();
    let pages = Math.min(room, Math.max(least, GROWTH / PAGE, Math.ceil(before / PAGE / 8)));
    for (;;) {
      try {
        this.memory.grow(pages);
        break;
      } catch (error) {
        if (pages === least) throw fail(error);
        pages = least;
      }
    }
    this.#insert({ at: before - MARGIN, bytes: pages * PAGE });
  }

  #insert(block: Block): void {
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#free[middle].at < block.at) low = middle + 1;
      else high = middle;
    }
    const before = this.#free[low - 1];
    const after = this.#free[low];
    const joinsBefore = before !== undefined && before.at + before.bytes === block.at;
    const joinsAfter = after !== undefined && block.at + block.bytes === after.at;
    if (joinsBefore && joinsAfter) {
      before.bytes += block.bytes + after.bytes;
      this.#free.splice(low, 1);
    } else if (joinsBefore) {
      before.bytes += block.bytes;
    } else if (joinsAfter) {
      after.at = block.at;
      after.bytes += block.bytes;
    } else {
      this.#free.splice(low, 0, block);
    }
  }
}

/**
 * The way back to the host. Waiting for a device is dear (in Deno a map blocks until the GPU is idle
 * and sleeps 10 ms), so results are copied in their run's own submission into slabs of mappable
 * memory, and a slab is mapped when something in it is fetched: one wait brings all it holds.
 *
 * @module
 */

import { MAP_READ_MODE, USAGE } from "./device.ts";
import type { DeviceErrors, Memory, WebGpuBuffer } from "./memory.ts";

const SMALL = 4096;
const SLAB = 65536;
// Slabs with large results that nobody fetched: beyond this, the oldest are brought to the host.
const MOST_WAITING = 8;
const MOST_WAITING_BYTES = 2 ** 27;
// Bytes of idle mappable memory kept for reuse.
const MOST_IDLE_BYTES = 2 ** 28;

/** Mappable memory that fills up, is mapped and copied to the host once, and is used again. */
class Slab {
  used = 0;
  /** What it held, once it was asked for. */
  data: Promise<ArrayBuffer> | null = null;
  readonly buffer: WebGpuBuffer;

  constructor(buffer: WebGpuBuffer) {
    this.buffer = buffer;
  }
}

/** Where a result lies. */
export interface Piece {
  readonly slab: Slab;
  readonly offset: number;
  readonly bytes: number;
}

/** Slabs in use and idle. */
export class Staging {
  readonly #memory: Memory;
  readonly #errors: DeviceErrors;
  /** Idle buffers by size. */
  readonly #idle = new Map<number, WebGpuBuffer[]>();
  #idleBytes = 0;
  #current: Slab | null = null;
  /** Full slabs and slabs of large results that nobody fetched, oldest first. */
  #waiting: Slab[] = [];

  constructor(memory: Memory, errors: DeviceErrors) {
    this.#memory = memory;
    this.#errors = errors;
  }

  /** Encodes the copy of `bytes` of `source` to a place in a slab. */
  place(encoder: GPUCommandEncoder, source: WebGpuBuffer, bytes: number, from = 0): Piece {
    const size = Math.ceil(bytes / 4) * 4;
    let slab: Slab;
    if (size <= SMALL) {
      if (this.#current && this.#current.used + size > SLAB) {
        this.#waiting.push(this.#current);
        this.#current = null;
      }
      slab = this.#current ??= this.#take(SLAB);
    } else {
      // Powers of two, so that results of nearly the same size share the idle buffers.
      slab = this.#take(Math.max(SLAB, 2 ** Math.ceil(Math.log2(size))));
      this.#waiting.push(slab);
    }
    const offset = slab.used;
    slab.used += size;
    if (size > 0) encoder.copyBufferToBuffer(source.gpu, from, slab.buffer.gpu, offset, size);
    return { slab, offset, bytes };
  }

  /** After a submission: brings to the host what has waited too long. */
  drain(): void {
    let bytes = this.#waiting.reduce((sum, slab) => sum + slab.buffer.bytes, 0);
    while (this.#waiting.length > MOST_WAITING || bytes > MOST_WAITING_BYTES) {
      const slab = this.#waiting[0];
      bytes -= slab.buffer.bytes;
      // Its failure is told to who fetches, or by the device's own errors.
      this.#read(slab).catch(() => {});
    }
  }

  /** The bytes of each piece. */
  async fetch(pieces: readonly Piece[]): Promise<ArrayBuffer[]> {
    // All maps start before the first wait.
    const slabs = pieces.map((piece) => this.#read(piece.slab));
    const data = await Promise.all(slabs);
    return pieces.map(({ offset, bytes }, i) => data[i].slice(offset, offset + bytes));
  }

  /** Destroys all idle memory. */
  close(): void {
    for (const list of this.#idle.values()) list.forEach((b) => this.#memory.free(b));
    this.#idle.clear();
  }

  #take(size: number): Slab {
    const idle = this.#idle.get(size)?.pop();
    if (idle) this.#idleBytes -= size;
    return new Slab(
      idle ?? this.#memory.allocate(size, USAGE.MAP_READ | USAGE.COPY_DST, "staging memory"),
    );
  }

  #read(slab: Slab): Promise<ArrayBuffer> {
    if (slab.data) return slab.data;
    if (slab === this.#current) this.#current = null;
    else this.#waiting = this.#waiting.filter((other) => other !== slab);
    return slab.data = this.#map(slab);
  }

  async #map(slab: Slab): Promise<ArrayBuffer> {
    const { gpu, bytes } = slab.buffer;
    let data: ArrayBuffer;
    try {
      await gpu.mapAsync(MAP_READ_MODE, 0, slab.used);
      data = gpu.getMappedRange(0, slab.used).slice(0);
      gpu.unmap();
    } catch (error) {
      this.#memory.free(slab.buffer);
      await this.#errors.settle();
      throw new Error(
        `webgpu: reading results: ${error instanceof Error ? error.message : String(error)}`,
      );
    }
    if (this.#idleBytes + bytes > MOST_IDLE_BYTES) {
      this.#memory.free(slab.buffer);
    } else {
      this.#idleBytes += bytes;
      const list = this.#idle.get(bytes);
      if (list) list.push(slab.buffer);
      else this.#idle.set(bytes, [slab.buffer]);
    }
    return data;
  }
}

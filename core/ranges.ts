/**
 * What the bytes of a safetensors file are read from: a file, a `Blob`, memory, or a source of one's own.
 *
 * @module
 */

import { openForReading, reasonOf } from "./files.ts";
import { yieldToEvents } from "./turn.ts";

/** Bytes of a file that are read at once; others get their turn in between. */
const BLOCK = 4 << 20;

/** Anything that bytes can be read from by range. */
export interface RangeSource {
  /** Size in bytes. */
  readonly size: number;
  /** Returns exactly the bytes `[offset, offset + length)`. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** Where the source can: reads the bytes from `offset` on into `into` at once; how many there were. */
  readSync?(offset: number, into: Uint8Array): number;
  /** Releases the source; called by `close`. */
  close?(): void;
}

/** A safetensors file that cannot be read or written. The message names the file and the key. */
export class SafetensorsError extends Error {
  /** The class's name. */
  override readonly name: string = "SafetensorsError";
}

/** Opens `source`; a path needs Deno. */
export async function rangeOf(
  source: string | Blob | Uint8Array | RangeSource,
): Promise<RangeSource> {
  if (typeof source === "string") return await fileRange(source);
  if (source instanceof Uint8Array) {
    return {
      size: source.length,
      readSync(offset, into) {
        const bytes = source.subarray(offset, offset + into.length);
        into.set(bytes);
        return bytes.length;
      },
      read: (offset, length) => Promise.resolve(source.slice(offset, offset + length)),
    };
  }
  if (source instanceof Blob) {
    return {
      size: source.size,
      read: async (offset, length) =>
        new Uint8Array(await source.slice(offset, offset + length).arrayBuffer()),
    };
  }
  return source;
}

async function fileRange(path: string): Promise<RangeSource> {
  const file = await openForReading("open safetensors", path);
  let closed = false;
  const readSync = (offset: number, into: Uint8Array): number => {
    file.seekSync(offset, 0);
    for (let at = 0; at < into.length;) {
      const count = file.readSync(into.subarray(at));
      if (count === null) return at;
      at += count;
    }
    return into.length;
  };
  return {
    size: (await file.stat()).size,
    readSync,
    async read(offset: number, length: number): Promise<Uint8Array> {
      const bytes = new Uint8Array(length);
      for (let at = 0; at < length; at += BLOCK) {
        const count = readSync(offset + at, bytes.subarray(at, at + BLOCK));
        if (at + count < Math.min(at + BLOCK, length)) return bytes.subarray(0, at + count);
        await yieldToEvents();
      }
      return bytes;
    },
    close(): void {
      if (!closed) file.close();
      closed = true;
    },
  };
}

/** A range of a source, and what errors call it. */
export interface Range {
  readonly source: RangeSource;
  readonly offset: number;
  readonly length: number;
  /** The file, and the part of it. */
  readonly label: string;
}

/** Reads the range; a source that brings fewer bytes, or fails, becomes an error with a name. */
export async function readExactly(range: Range): Promise<Uint8Array<ArrayBuffer>> {
  const { source, offset, length } = range;
  let bytes: Uint8Array;
  try {
    bytes = await source.read(offset, length);
  } catch (error) {
    return failed(range, error);
  }
  checkCount(range, bytes.length);
  // Typed arrays are viewed on it: it must start its own buffer.
  const owned = bytes.byteOffset === 0 && bytes.buffer instanceof ArrayBuffer &&
    bytes.buffer.byteLength === length;
  return owned ? bytes as Uint8Array<ArrayBuffer> : new Uint8Array(bytes);
}

/** As {@linkcode readExactly}, at once, into memory that is there. */
export function readExactlyInto(range: Range, into: Uint8Array): void {
  const { source, offset, label } = range;
  if (!source.readSync) {
    throw new SafetensorsError(`read safetensors: ${label}: this source has to be waited for`);
  }
  let count: number;
  try {
    count = source.readSync(offset, into);
  } catch (error) {
    return failed(range, error);
  }
  checkCount(range, count);
}

function failed({ offset, length, label }: Range, cause: unknown): never {
  throw new SafetensorsError(
    `read safetensors: ${label}: bytes ${offset} to ${offset + length} cannot be read: ` +
      reasonOf(cause),
    { cause },
  );
}

function checkCount({ offset, length, label }: Range, count: number): void {
  if (count === length) return;
  throw new SafetensorsError(
    `read safetensors: ${label}: needs bytes ${offset} to ${offset + length}, got ${count} ` +
      `bytes: the file is truncated`,
  );
}

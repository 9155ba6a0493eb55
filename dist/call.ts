/**
 * What a rank is about to do, in words and as a number that ranks compare.
 *
 * @module
 */

import type { Transferable } from "./group.ts";

/** Bytes that a call's words may take when ranks exchange them. */
export const CALL_BYTES = 512;

/** An element type's short name. */
const names: Record<string, string> = {
  Float16Array: "f16",
  Float32Array: "f32",
  Float64Array: "f64",
  Int8Array: "i8",
  Uint8Array: "u8",
  Uint8ClampedArray: "u8",
  Int16Array: "i16",
  Uint16Array: "u16",
  Int32Array: "i32",
  Uint32Array: "u32",
  BigInt64Array: "i64",
  BigUint64Array: "u64",
};

/** The array's own kind, whatever a subclass calls itself. */
function kindOf(data: Transferable): string {
  return names[data[Symbol.toStringTag]];
}

/** `allReduce of 4096 f32 (sum, "bucket 3")`. */
export function describeCall(
  collective: string,
  data: Transferable | null,
  details: string,
  label: string | undefined,
): string {
  const what = data === null ? "" : ` of ${data.length} ${kindOf(data)}`;
  const more = [details, label === undefined ? "" : JSON.stringify(label)].filter((s) => s !== "");
  return `${collective}${what}${more.length === 0 ? "" : ` (${more.join(", ")})`}`;
}

/** A number of 53 bits that stands for a text. */
export function hashOf(text: string): number {
  let low = 0x811c9dc5; // FNV-1a, twice, from different starts
  let high = 0x2f1b7a4d;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    low = Math.imul(low ^ unit, 0x01000193);
    high = Math.imul(high ^ unit ^ 0x5bd1, 0x01000193);
  }
  return (high >>> 11) * 2 ** 32 + (low >>> 0);
}

/** `text` as bytes of a fixed number, cut where it is longer. */
export function packCall(text: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(CALL_BYTES);
  new TextEncoder().encodeInto(text, bytes);
  return bytes;
}

/** The texts that `packCall` made, by rank. */
export function unpackCalls(all: Uint8Array): string[] {
  return Array.from({ length: all.length / CALL_BYTES }, (_, rank) => {
    const bytes = all.slice(rank * CALL_BYTES, (rank + 1) * CALL_BYTES);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  });
}

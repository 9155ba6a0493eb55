/**
 * Reading and writing of safetensors files, byte for byte as the Python library lays them out.
 * This module knows bytes only, no tensors.
 *
 * A file is: 8 bytes of header length (little endian), the header as JSON padded with spaces to a
 * multiple of 8, and the tensors' bytes without holes, in the order of the header.
 *
 * @module
 */

import { type FileWriter, reasonOf, writeAtomically } from "./files.ts";
import {
  type Range,
  rangeOf,
  type RangeSource,
  readExactly,
  readExactlyInto,
  SafetensorsError,
} from "./ranges.ts";

export { type RangeSource, SafetensorsError };

/** A dtype's name in a safetensors file. */
export type SafetensorsDtype =
  | "BOOL"
  | "F4"
  | "F6_E2M3"
  | "F6_E3M2"
  | "U8"
  | "I8"
  | "F8_E5M2"
  | "F8_E4M3"
  | "F8_E8M0"
  | "F8_E4M3FNUZ"
  | "F8_E5M2FNUZ"
  | "I16"
  | "U16"
  | "F16"
  | "BF16"
  | "I32"
  | "U32"
  | "F32"
  | "C64"
  | "F64"
  | "I64"
  | "U64";

/**
 * Bits in one element, by dtype. The order is the format's: tensors lie in a file from the last of
 * these dtypes to the first, and by name within a dtype.
 */
const BITS: Record<SafetensorsDtype, number> = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
};

const DTYPE_ORDER: ReadonlyMap<string, number> = new Map(
  Object.keys(BITS).map((dtype, index) => [dtype, index]),
);

/** The largest header that is read, in bytes: the Python library's limit. */
const MAX_HEADER_BYTES = 100_000_000;

/** What the header says about one tensor. */
export interface SafetensorsEntry {
  /** The dtype's name. */
  readonly dtype: SafetensorsDtype;
  /** Sizes of the dimensions; `[]` is a scalar. */
  readonly shape: readonly number[];
  /** Offset of the tensor's first byte in the file. */
  readonly begin: number;
  /** Offset of the byte after the tensor's last one in the file. */
  readonly end: number;
}

/** An open safetensors file. The header is in memory; tensors are read one at a time. */
export interface SafetensorsFile extends AsyncDisposable {
  /** The path, or a word for what was opened instead of a path. */
  readonly name: string;
  /** The header's `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The keys, in the order of the header. */
  readonly names: readonly string[];
  /** The header's entry of each key, in the order of the header. */
  readonly entries: ReadonlyMap<string, SafetensorsEntry>;
  /**
   * Reads one tensor's bytes, and no others, into a buffer of their own.
   *
   * @throws SafetensorsError if there is no such key or the bytes cannot be read.
   */
  read(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /**
   * Reads the bytes of one tensor from `offset` on into `into`, at once.
   *
   * @throws SafetensorsError if there is no such key, the tensor is shorter, the bytes cannot be read,
   * or the source is one that has to be waited for.
   */
  readSync(name: string, offset: number, into: Uint8Array): void;
  /** Closes the file. */
  close(): void;
}

/** A tensor to be written: its bytes, or a function that brings them when their turn comes. */
export interface SafetensorsInput {
  /** The dtype's name. */
  readonly dtype: SafetensorsDtype;
  /** Sizes of the dimensions; `[]` is a scalar. */
  readonly shape: readonly number[];
  /** The elements, little endian, row-major. */
  readonly data: Uint8Array | (() => Uint8Array | Promise<Uint8Array>);
}

/**
 * Opens a safetensors file and checks its whole header. A path needs Deno; a `Blob`, bytes or a
 * {@linkcode RangeSource} work in a browser too.
 *
 * @param source what to read.
 * @param name what errors call it; the path by default.
 * @throws SafetensorsError if the file is not a whole and consistent safetensors file.
 * @throws Error if the path cannot be opened.
 *
 * @example
 * ```ts
 * import { encodeSafetensors, openSafetensors } from "./safetensors.ts";
 *
 * const bytes = encodeSafetensors([
 *   ["bias", { dtype: "F32", shape: [2], data: new Uint8Array(new Float32Array([1, 2]).buffer) }],
 * ]);
 * await using file = await openSafetensors(bytes);
 * const bias = new Float32Array((await file.read("bias")).buffer);
 * console.assert(bias[1] === 2 && file.entries.get("bias")?.shape[0] === 2);
 * ```
 */
export async function openSafetensors(
  source: string | Blob | Uint8Array | RangeSource,
  name?: string,
): Promise<SafetensorsFile> {
  const label = name ?? (typeof source === "string" ? source : "(safetensors in memory)");
  const range = await rangeOf(source);
  try {
    const { metadata, entries } = await readHeader(range, label);
    const rangeFor = (key: string): Range => {
      const entry = entries.get(key);
      if (entry === undefined) {
        throw new SafetensorsError(
          `read tensor: ${label} has no key "${key}"; it has ${listed([...entries.keys()])}`,
        );
      }
      const length = entry.end - entry.begin;
      return { source: range, offset: entry.begin, length, label: `${label}, ${key}` };
    };
    return {
      name: label,
      metadata,
      entries,
      names: [...entries.keys()],
      read: async (key) => await readExactly(rangeFor(key)),
      readSync(key: string, offset: number, into: Uint8Array): void {
        const whole = rangeFor(key);
        const { length } = into;
        if (offset < 0 || offset + length > whole.length) {
          throw new SafetensorsError(
            `read tensor: ${whole.label}: has ${whole.length} bytes, needs ${length} from ${offset} on`,
          );
        }
        readExactlyInto({ ...whole, offset: whole.offset + offset, length }, into);
      },
      close(): void {
        range.close?.();
      },
      [Symbol.asyncDispose](): Promise<void> {
        range.close?.();
        return Promise.resolve();
      },
    };
  } catch (error) {
    range.close?.();
    throw error;
  }
}

/**
 * Writes a safetensors file, tensor by tensor: `data` functions are called one after the other, so
 * that no more than one tensor need be in memory. The file is written beside `path` and renamed, so
 * a failure leaves what was there before.
 *
 * @param tensors keys and tensors, in any order; the file's order is the format's.
 * @param metadata the header's `__metadata__`, such as `{ format: "pt" }`.
 * @throws SafetensorsError if a key comes twice or bytes do not fit dtype and shape.
 * @throws Error if the file cannot be written.
 *
 * @example
 * ```ts
 * import { openSafetensors, writeSafetensors } from "./safetensors.ts";
 *
 * const path = `${await Deno.makeTempDir()}/adapter_model.safetensors`;
 * await writeSafetensors(path, [
 *   ["lora_A", { dtype: "F32", shape: [4, 8], data: () => new Uint8Array(4 * 8 * 4) }],
 * ], { format: "pt" });
 * await using file = await openSafetensors(path);
 * console.assert(file.metadata.format === "pt");
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<readonly [string, SafetensorsInput]>,
  metadata?: Readonly<Record<string, string>>,
): Promise<void> {
  const { header, order } = layOut(tensors, metadata, path);
  let failure: unknown;
  try {
    await writeAtomically(path, async (file: FileWriter) => {
      await file.write(header);
      for (const [key, tensor, bytes] of order) {
        const { data } = tensor;
        const written = typeof data === "function" ? await data() : data;
        try {
          checkLength(key, tensor, bytes, written, path);
        } catch (error) {
          failure = error;
          throw error;
        }
        await file.write(written);
      }
    });
  } catch (error) {
    throw failure ?? error;
  }
}

/**
 * The bytes of a safetensors file, for tensors whose bytes are all in memory.
 *
 * @throws SafetensorsError if a key comes twice or bytes do not fit dtype and shape.
 *
 * @example
 * ```ts
 * import { encodeSafetensors } from "./safetensors.ts";
 *
 * const bytes = encodeSafetensors([
 *   ["step", { dtype: "I32", shape: [], data: new Uint8Array(4) }],
 * ]);
 * console.assert(bytes.length === 8 + 56 + 4);
 * ```
 */
export function encodeSafetensors(
  tensors: Iterable<readonly [string, SafetensorsInput & { readonly data: Uint8Array }]>,
  metadata?: Readonly<Record<string, string>>,
): Uint8Array<ArrayBuffer> {
  const name = "(safetensors in memory)";
  const inMemory = [...tensors];
  const { header, order, total } = layOut(inMemory, metadata, name);
  const bytes = new Uint8Array(header.length + total);
  bytes.set(header);
  let at = header.length;
  for (const [key, tensor, length] of order) {
    const data = tensor.data as Uint8Array;
    checkLength(key, tensor, length, data, name);
    bytes.set(data, at);
    at += length;
  }
  return bytes;
}

/**
 * The number of bytes that a tensor takes.
 *
 * @throws SafetensorsError if the dtype is unknown, a size is not a non-negative integer, or the
 * number is not a whole or safe one.
 *
 * @example
 * ```ts
 * import { safetensorsByteLength } from "./safetensors.ts";
 *
 * console.assert(safetensorsByteLength("BF16", [3, 5]) === 30);
 * ```
 */
export function safetensorsByteLength(dtype: SafetensorsDtype, shape: readonly number[]): number {
  const width = DTYPE_ORDER.has(dtype) ? BITS[dtype] : undefined;
  if (width === undefined) {
    throw new SafetensorsError(
      `has dtype ${JSON.stringify(dtype)}, needs one of ${Object.keys(BITS).join(", ")}`,
    );
  }
  let bits: number = width;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new SafetensorsError(
        `has shape ${JSON.stringify(shape)}, needs non-negative integers`,
      );
    }
    bits *= size;
  }
  if (!Number.isSafeInteger(bits) || bits % 8 !== 0) {
    throw new SafetensorsError(
      `has shape ${JSON.stringify(shape)} of ${dtype}, which is not a whole number of bytes`,
    );
  }
  return bits / 8;
}

// --- reading ---------------------------------------------------------------------------------

interface Header {
  metadata: Record<string, string>;
  entries: Map<string, SafetensorsEntry>;
}

async function readHeader(range: RangeSource, label: string): Promise<Header> {
  const bad = (problem: string): never => {
    throw new SafetensorsError(`open safetensors: ${label}: ${problem}`);
  };
  if (range.size < 8) {
    bad(`needs at least 8 bytes, has ${range.size}: the file is truncated or not safetensors`);
  }
  const prefix = await readExactly({
    source: range,
    offset: 0,
    length: 8,
    label: `${label}, header length`,
  });
  const length = Number(new DataView(prefix.buffer).getBigUint64(0, true));
  if (length > MAX_HEADER_BYTES) {
    bad(`header length is ${length} bytes, the limit is ${MAX_HEADER_BYTES}: not safetensors?`);
  }
  if (8 + length > range.size) {
    bad(`header needs ${length} bytes, ${range.size - 8} follow: the file is truncated`);
  }
  const header = parseHeader(
    await readExactly({ source: range, offset: 8, length, label: `${label}, header` }),
    bad,
  );

  const metadata: Record<string, string> = {};
  const entries = new Map<string, SafetensorsEntry>();
  for (const [key, value] of Object.entries(header)) {
    if (key === "__metadata__") {
      if (!isRecord(value)) bad(`key "__metadata__" needs an object, is ${JSON.stringify(value)}`);
      for (const [name, text] of Object.entries(value as Record<string, unknown>)) {
        if (typeof text !== "string") {
          bad(`key "__metadata__": "${name}" needs a string, is ${JSON.stringify(text)}`);
        }
        Object.defineProperty(metadata, name, { value: text, enumerable: true });
      }
      continue;
    }
    entries.set(key, parseEntry(value, 8 + length, (problem) => bad(`key "${key}" ${problem}`)));
  }

  // The tensors must cover the rest of the file, each byte once.
  const byPosition = [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  let at = 8 + length;
  let before = "the header";
  for (const [key, entry] of byPosition) {
    if (entry.end > range.size) {
      bad(
        `key "${key}" needs bytes up to ${entry.end}, the file has ${range.size}: it is truncated`,
      );
    }
    if (entry.begin < at) {
      bad(`key "${key}" begins at byte ${entry.begin}, inside of ${before}, which ends at ${at}`);
    }
    if (entry.begin > at) {
      bad(`bytes ${at} to ${entry.begin}, before key "${key}", belong to no tensor`);
    }
    at = entry.end;
    before = `key "${key}"`;
  }
  if (at !== range.size) {
    bad(`bytes ${at} to ${range.size}, after ${before}, belong to no tensor`);
  }
  return { metadata, entries };
}

function parseHeader(
  bytes: Uint8Array,
  bad: (problem: string) => never,
): Record<string, unknown> {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return bad("the header is not UTF-8");
  }
  let header: unknown;
  try {
    header = JSON.parse(text);
  } catch (error) {
    return bad(`the header is not JSON: ${reasonOf(error)}`);
  }
  if (!text.startsWith("{") || !isRecord(header)) return bad("the header is not a JSON object");
  const twice = duplicateKey(text);
  if (twice !== undefined) return bad(`key "${twice}" comes twice in the header`);
  return header;
}

/** The first key that one object of a valid JSON text holds twice: `JSON.parse` hides it. */
function duplicateKey(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (
    const [, brace, key] of json.matchAll(/([{}])|("(?:[^"\\]|\\.)*")(?=\s*:)|"(?:[^"\\]|\\.)*"/g)
  ) {
    if (brace === "{") open.push(new Set());
    else if (brace === "}") open.pop();
    else if (key !== undefined) {
      const name: string = JSON.parse(key);
      const keys = open[open.length - 1];
      if (keys.has(name)) return name;
      keys.add(name);
    }
  }
  return undefined;
}

function parseEntry(
  value: unknown,
  dataBegin: number,
  bad: (problem: string) => never,
): SafetensorsEntry {
  if (!isRecord(value)) return bad(`needs an object, is ${JSON.stringify(value)}`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!Array.isArray(shape)) return bad(`needs a list "shape", has ${JSON.stringify(shape)}`);
  let bytes: number;
  try {
    bytes = safetensorsByteLength(dtype as SafetensorsDtype, shape);
  } catch (error) {
    return bad(reasonOf(error));
  }
  if (
    !Array.isArray(offsets) || offsets.length !== 2 ||
    !offsets.every((offset) => Number.isSafeInteger(offset) && offset >= 0) ||
    offsets[1] < offsets[0]
  ) {
    return bad(`needs "data_offsets" [begin, end], has ${JSON.stringify(offsets)}`);
  }
  if (offsets[1] - offsets[0] !== bytes) {
    return bad(
      `of ${dtype} and shape ${JSON.stringify(shape)} needs ${bytes} bytes, its data_offsets ` +
        `${JSON.stringify(offsets)} hold ${offsets[1] - offsets[0]}`,
    );
  }
  return {
    dtype: dtype as SafetensorsDtype,
    shape,
    begin: dataBegin + offsets[0],
    end: dataBegin + offsets[1],
  };
}

// --- writing ---------------------------------------------------------------------------------

interface Layout {
  header: Uint8Array;
  order: [key: string, tensor: SafetensorsInput, bytes: number][];
  total: number;
}

function layOut(
  tensors: Iterable<readonly [string, SafetensorsInput]>,
  metadata: Readonly<Record<string, string>> | undefined,
  label: string,
): Layout {
  const sizes = new Map<string, [SafetensorsInput, number]>();
  for (const [key, tensor] of tensors) {
    const bad = (problem: string): never => {
      throw new SafetensorsError(`write safetensors: ${label}: key "${key}" ${problem}`);
    };
    if (key === "__metadata__") bad("is reserved for metadata");
    if (sizes.has(key)) bad("comes twice");
    let bytes = 0;
    try {
      bytes = safetensorsByteLength(tensor.dtype, tensor.shape);
    } catch (error) {
      bad(reasonOf(error));
    }
    sizes.set(key, [tensor, bytes]);
  }
  const order = [...sizes].map(([key, [tensor, bytes]]): Layout["order"][number] => [
    key,
    tensor,
    bytes,
  ]);
  order.sort(([a, x], [b, y]) =>
    DTYPE_ORDER.get(y.dtype)! - DTYPE_ORDER.get(x.dtype)! || compareUtf8(a, b)
  );

  const parts: string[] = [];
  if (metadata !== undefined) parts.push(`"__metadata__":${JSON.stringify(metadata)}`);
  let total = 0;
  for (const [key, { dtype, shape }, bytes] of order) {
    const entry = { dtype, shape, data_offsets: [total, total + bytes] };
    parts.push(`${JSON.stringify(key)}:${JSON.stringify(entry)}`);
    total += bytes;
  }
  const json = new TextEncoder().encode(`{${parts.join(",")}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  const header = new Uint8Array(8 + padded).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, 8);
  return { header, order, total };
}

function checkLength(
  key: string,
  { dtype, shape }: SafetensorsInput,
  bytes: number,
  data: Uint8Array,
  label: string,
): void {
  if (data.length === bytes) return;
  throw new SafetensorsError(
    `write safetensors: ${label}: key "${key}" of ${dtype} and shape ${JSON.stringify(shape)} ` +
      `needs ${bytes} bytes, got ${data.length}`,
  );
}

/** Compares as UTF-8 bytes would, where JavaScript compares UTF-16 units. */
function compareUtf8(a: string, b: string): number {
  const x = [...a], y = [...b];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    if (x[i] !== y[i]) return x[i].codePointAt(0)! - y[i].codePointAt(0)!;
  }
  return x.length - y.length;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function listed(names: readonly string[]): string {
  const shown = names.slice(0, 8).map((name) => `"${name}"`).join(", ");
  return names.length > 8 ? `${shown} and ${names.length - 8} more` : shown || "none";
}

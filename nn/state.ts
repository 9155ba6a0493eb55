/**
 * Host values and files of a module's state: key checks and conversions between dtypes.
 *
 * @module
 */

import type { Shape, Variable } from "../core/mod.ts";
import { bytesOf, type DType } from "../core/dtype.ts";
import type { SafetensorsDtype, SafetensorsFile, SafetensorsInput } from "../core/safetensors.ts";

/** Elements on the host, row-major. */
export interface HostTensor {
  /** Sizes of the dimensions. */
  readonly shape: Shape;
  /** The elements. */
  readonly data: Float32Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>;
}

/** Keys or shapes that do not fit. */
export class KeysError extends Error {
  override readonly name = "KeysError";
}

/**
 * Compares the keys and shapes that are needed with those that are there.
 *
 * Throws a {@linkcode KeysError} that lists every missing, unexpected and mis-shaped key; where not `strict`, only
 * wrong shapes are errors.
 */
export function checkKeys(
  what: string,
  needed: ReadonlyMap<string, Shape>,
  given: ReadonlyMap<string, { readonly shape: Shape }>,
  strict = true,
): void {
  const missing: string[] = [];
  const unexpected: string[] = [];
  const misshaped: string[] = [];
  for (const [key, shape] of needed) {
    const entry = given.get(key);
    if (!entry) missing.push(key);
    else if (entry.shape.join() !== shape.join()) {
      misshaped.push(`${key} (needs [${shape.join(", ")}], has [${entry.shape.join(", ")}])`);
    }
  }
  for (const key of given.keys()) if (!needed.has(key)) unexpected.push(key);
  const problems: string[] = [];
  const list = (title: string, keys: string[]): void => {
    if (keys.length > 0) problems.push(`${keys.length} ${title}:\n  ${keys.join("\n  ")}`);
  };
  if (strict) {
    list(missing.length === 1 ? "key is missing" : "keys are missing", missing);
    list(unexpected.length === 1 ? "key is unexpected" : "keys are unexpected", unexpected);
  }
  list(misshaped.length === 1 ? "key has another shape" : "keys have other shapes", misshaped);
  if (problems.length > 0) {
    throw new KeysError(`${what}: the keys do not fit; ${problems.join("\n")}`);
  }
}

/** The elements of a safetensors tensor; 16-bit and 64-bit floats become 32-bit ones. */
export function hostValues(
  bytes: Uint8Array<ArrayBuffer>,
  dtype: SafetensorsDtype,
  what: string,
): HostTensor["data"] {
  const { buffer, byteOffset, byteLength } = bytes;
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer, byteOffset, byteLength / 4);
    case "F16":
    case "BF16":
      return widened(bytes, dtype, new Float32Array(byteLength / 2));
    case "F64":
      return widened(bytes, dtype, new Float32Array(byteLength / 8));
    case "I32":
      return new Int32Array(buffer, byteOffset, byteLength / 4);
    case "U32":
      return new Uint32Array(buffer, byteOffset, byteLength / 4);
    default:
      throw new TypeError(`${what}: needs dtype F32, F16, BF16, F64, I32 or U32, has ${dtype}`);
  }
}

/** Overwrites `variable` with host values, rounded to its dtype. */
export async function writeHost(variable: Variable, value: HostTensor, key: string): Promise<void> {
  const { data } = value;
  if (data.length !== variable.size) {
    throw new RangeError(
      `load "${key}": needs ${variable.size} elements for shape [${variable.shape.join(", ")}], ` +
        `got ${data.length}`,
    );
  }
  await variable.write(rounded(data, variable.dtype, `load "${key}"`));
}

/** Host values as memory of `dtype` holds them. */
function rounded(data: HostTensor["data"], dtype: DType, what: string): ArrayBufferView {
  const isFloat = data instanceof Float32Array;
  switch (dtype) {
    case "f32":
      return isFloat ? data : Float32Array.from(data);
    case "f16":
      return Float16Array.from(data);
    case "bf16":
      return roundedToBf16(isFloat ? data : Float32Array.from(data));
    default:
      if (isFloat) throw new TypeError(`${what}: needs dtype ${dtype}, got floats`);
      return data;
  }
}

/** Overwrites `variable` with the tensor `name` of `file`, block by block, rounded to its dtype. */
export async function loadTensor(
  variable: Variable,
  file: SafetensorsFile,
  name: string,
  what: string,
): Promise<void> {
  const { dtype, begin, end } = file.entries.get(name)!;
  const to = variable.dtype;
  if (FILE_DTYPES[to] === dtype) {
    return await variable.fill((into, at) => file.readSync(name, at, into));
  }
  // Bytes in the file for each byte in memory.
  const width = (end - begin) / (variable.size * bytesOf(to));
  let block = new Uint8Array(0);
  await variable.fill((into, at) => {
    const length = into.length * width;
    if (block.length < length) block = new Uint8Array(length);
    const bytes = block.subarray(0, length);
    file.readSync(name, at * width, bytes);
    if (to === "f32" && (dtype === "F16" || dtype === "BF16" || dtype === "F64")) {
      widened(bytes, dtype, new Float32Array(into.buffer, into.byteOffset, into.length / 4));
    } else {
      const { buffer, byteOffset, byteLength } = rounded(hostValues(bytes, dtype, what), to, what);
      into.set(new Uint8Array(buffer, byteOffset, byteLength));
    }
  });
}

/** The dtypes that a file holds as memory does. */
const FILE_DTYPES: Record<DType, SafetensorsDtype | null> = {
  f32: "F32",
  f16: "F16",
  bf16: "BF16",
  i32: "I32",
  u32: "U32",
  bool: null,
};

/** How a safetensors file holds `variable`; its value is read when its turn comes. */
export function safetensorsInput(variable: Variable): SafetensorsInput {
  const dtype = FILE_DTYPES[variable.dtype];
  if (dtype === null) {
    throw new TypeError(`save: ${variable.name ?? "a variable"} is of dtype ${variable.dtype}`);
  }
  return {
    dtype,
    shape: variable.shape,
    data: async () => {
      const data = await variable.data();
      if (dtype === "F16") return new Uint8Array(Float16Array.from(data).buffer);
      // A value of 16 bits that was widened: its upper half is all of it.
      if (dtype === "BF16") return new Uint8Array(roundedToBf16(data as Float32Array).buffer);
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    },
  };
}

/** Floats of another width as 32-bit ones. A loop for each: V8 compiles one for the arrays it has met. */
function widened<B extends ArrayBufferLike>(
  { buffer, byteOffset }: Uint8Array,
  dtype: "F16" | "BF16" | "F64",
  into: Float32Array<B>,
): Float32Array<B> {
  const { length } = into;
  if (dtype === "F64") into.set(new Float64Array(buffer, byteOffset, length));
  else if (dtype === "F16") {
    const halves = new Float16Array(buffer, byteOffset, length);
    for (let i = 0; i < length; i++) into[i] = halves[i];
  } else {
    const bits = new Uint16Array(buffer, byteOffset, length);
    const words = new Uint32Array(into.buffer, into.byteOffset, length);
    for (let i = 0; i < length; i++) words[i] = bits[i] << 16;
  }
  return into;
}

/** Rounds to nearest, ties to even, as PyTorch does. */
function roundedToBf16(values: Float32Array): Uint16Array<ArrayBuffer> {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bits = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const word = words[i];
    const isNan = (word & 0x7fffffff) > 0x7f800000;
    bits[i] = isNan ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return bits;
}

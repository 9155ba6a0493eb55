/**
 * Element types. Arithmetic runs in a 32-bit {@linkcode Register}; `f16` and `bf16` are storage: a
 * kernel widens them when it loads and rounds them when it stores.
 *
 * @module
 */

/** The element type of a tensor. `bool` is held as a 32-bit 0 or 1. */
export type DType = "f32" | "f16" | "bf16" | "i32" | "u32" | "bool";

/** The type a value has while it is computed with. */
export type Register = "f32" | "i32" | "u32" | "bool";

/** The typed array that holds a tensor's elements on the host. */
export type HostArray<D extends DType = DType> = D extends "f32" ? Float32Array<ArrayBuffer>
  : D extends "i32" ? Int32Array<ArrayBuffer>
  : D extends "u32" | "bool" ? Uint32Array<ArrayBuffer>
  : Uint16Array<ArrayBuffer>;

/** Every dtype, in promotion order. */
export const DTYPES: readonly DType[] = ["bool", "u32", "i32", "bf16", "f16", "f32"];

/** Floating-point dtypes. */
export const FLOATS: readonly DType[] = ["f32", "f16", "bf16"];
/** Dtypes of numbers. */
export const NUMBERS: readonly DType[] = ["f32", "f16", "bf16", "i32", "u32"];
/** Dtypes of whole numbers and bits. */
export const INTEGERS: readonly DType[] = ["i32", "u32", "bool"];

/** Bytes of one element. */
export function bytesOf(dtype: DType): number {
  return dtype === "f16" || dtype === "bf16" ? 2 : 4;
}

/** The register type an element of `dtype` is computed in. */
export function registerOf(dtype: DType): Register {
  return dtype === "f16" || dtype === "bf16" ? "f32" : dtype;
}

/** Whether `dtype` is a floating-point type, and so can carry a gradient. */
export function isFloat(dtype: DType): boolean {
  return dtype === "f32" || dtype === "f16" || dtype === "bf16";
}

/** Bytes a tensor of `count` elements occupies on a device: whole 16-byte vectors, never zero. */
export function storageBytes(dtype: DType, count: number): number {
  return Math.max(16, Math.ceil(count * bytesOf(dtype) / 16) * 16);
}

/** Views `buffer` as the host array of `dtype`. */
export function hostArray<D extends DType>(
  dtype: D,
  buffer: ArrayBuffer,
  count: number,
): HostArray<D> {
  const make = (): HostArray => {
    switch (dtype as DType) {
      case "f32":
        return new Float32Array(buffer, 0, count);
      case "i32":
        return new Int32Array(buffer, 0, count);
      case "u32":
      case "bool":
        return new Uint32Array(buffer, 0, count);
      default:
        return new Uint16Array(buffer, 0, count);
    }
  };
  return make() as HostArray<D>;
}

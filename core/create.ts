/**
 * Tensors from data and from rules.
 *
 * @module
 */

import { currentDevice, type Device } from "./device.ts";
import { bytesOf, type DType, DTYPES } from "./dtype.ts";
import { Node } from "./graph.ts";
import { leafOp, scalar } from "./op.ts";
import { iota } from "./ops/iota.ts";
import { checkShape, type Shape, show, sizeOf } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/** Numbers, nested as deep as the tensor has dimensions. */
export type Nested = number | boolean | readonly Nested[];

/** Typed arrays a tensor can be made from. */
export type TypedArray =
  | Float32Array
  | Float64Array
  | Float16Array
  | Int32Array
  | Uint32Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array;

/** Options of {@linkcode tensor}. */
export interface TensorOptions<D extends DType> {
  /** Default: i32 for Int32Array, u32 for Uint32Array, bool for booleans, else f32. */
  readonly dtype?: D;
  /** Default: the nesting's, or one dimension. */
  readonly shape?: Shape;
}

/**
 * A tensor of host data, which is copied.
 *
 * Throws where rows differ in length, the shape does not fit the data, or a whole-number dtype is given
 * fractions.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * console.log(tensor([[1, 2], [3, 4]]).shape); // [2, 2]
 * console.log(tensor(new Int32Array([1, 2, 3, 4]), { shape: [2, 2] }).dtype); // i32
 * ```
 */
export function tensor<D extends DType = "f32">(
  data: Nested | TypedArray,
  options: TensorOptions<D> = {},
): Tensor<D> {
  const device = currentDevice();
  const typed = ArrayBuffer.isView(data) ? data as TypedArray : null;
  let values: ArrayLike<number>;
  let shape: Shape;
  let dtype: DType;
  if (typed) {
    values = typed;
    shape = [typed.length];
    dtype = typed instanceof Int32Array ? "i32" : typed instanceof Uint32Array ? "u32" : "f32";
  } else {
    shape = nesting(data as Nested);
    const flat: number[] = [];
    let booleans = true;
    const visit = (part: Nested, depth: number): void => {
      if (typeof part === "number" || typeof part === "boolean") {
        if (depth !== shape.length) throw new RangeError("tensor: the data is nested unevenly");
        if (typeof part === "number") booleans = false;
        flat.push(Number(part));
        return;
      }
      if (!Array.isArray(part) || part.length !== shape[depth]) {
        throw new RangeError(
          `tensor: needs rows of one length: ${shape[depth] ?? 0} elements at depth ${depth}, got ${
            Array.isArray(part) ? part.length : String(part)
          }`,
        );
      }
      for (const p of part) visit(p, depth + 1);
    };
    visit(data as Nested, 0);
    values = flat;
    dtype = booleans && flat.length > 0 ? "bool" : "f32";
  }
  dtype = options.dtype ?? dtype;
  if (!DTYPES.includes(dtype)) {
    throw new TypeError(`tensor: needs one of ${DTYPES.join(", ")}, got ${dtype}`);
  }
  if (options.shape) {
    checkShape("tensor", options.shape);
    if (sizeOf(options.shape) !== values.length) {
      throw new RangeError(
        `tensor: shape ${show(options.shape)} needs ${
          sizeOf(options.shape)
        } elements, got ${values.length}`,
      );
    }
    shape = options.shape;
  }
  return fromBytes(pack(values, dtype), shape, dtype as D, device);
}

/** A tensor of raw elements, as a file or another tensor holds them. Not copied. */
export function fromBytes<D extends DType>(
  data: ArrayBufferView<ArrayBuffer>,
  shape: Shape,
  dtype: D,
  device: Device = currentDevice(),
): Tensor<D> {
  const need = sizeOf(shape) * bytesOf(dtype);
  if (data.byteLength < need) {
    throw new RangeError(
      `tensor: ${dtype}${show(shape)} needs ${need} bytes, got ${data.byteLength}`,
    );
  }
  const value = { kind: "host", data } as const;
  return new Tensor<D>(new Node(leafOp, [], { shape, dtype }, {}, device, false, value, null));
}

function nesting(data: Nested): number[] {
  const shape: number[] = [];
  let part = data;
  while (Array.isArray(part)) {
    shape.push(part.length);
    part = part[0];
  }
  return shape;
}

function pack(values: ArrayLike<number>, dtype: DType): ArrayBufferView<ArrayBuffer> {
  switch (dtype) {
    case "f32":
      return Float32Array.from(values);
    case "f16":
      return Float16Array.from(values);
    case "bf16":
      return Uint16Array.from(values, (v) => roundToBf16(v));
    case "bool":
      return Uint32Array.from(values, (v) => v ? 1 : 0);
    default:
      for (let i = 0; i < values.length; i++) {
        if (!Number.isInteger(values[i])) {
          throw new TypeError(`tensor: ${dtype} needs whole numbers, got ${values[i]} at ${i}`);
        }
      }
      return dtype === "i32" ? Int32Array.from(values) : Uint32Array.from(values);
  }
}

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

/** The upper half of a float's bits, rounded to nearest even. */
function roundToBf16(value: number): number {
  float[0] = value;
  const bits = word[0];
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Options of the rules. */
export interface CreateOptions<D extends DType> {
  /** Default f32 (i32 for {@linkcode arange}). */
  readonly dtype?: D;
}

/** Every element `value`, a per-step value. It takes no memory. */
export function full<D extends DType = "f32">(
  shape: Shape,
  value: number,
  options: CreateOptions<D> = {},
): Tensor<D> {
  checkShape("full", shape);
  const dtype = options.dtype ?? "f32" as D;
  return scalar(value, dtype, currentDevice()).expand(shape) as Tensor<D>;
}

/** Zeros. */
export function zeros<D extends DType = "f32">(
  shape: Shape,
  options: CreateOptions<D> = {},
): Tensor<D> {
  return full(shape, 0, options);
}

/** Ones. */
export function ones<D extends DType = "f32">(
  shape: Shape,
  options: CreateOptions<D> = {},
): Tensor<D> {
  return full(shape, 1, options);
}

/** 0, 1, … n - 1. */
export function arange<D extends DType = "i32">(
  n: number,
  options: CreateOptions<D> = {},
): Tensor<D> {
  checkShape("arange", [n]);
  return iota([n], 0, options.dtype ?? "i32") as Tensor<D>;
}

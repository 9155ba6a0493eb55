/**
 * The tensor: a recipe until it is read.
 *
 * @module
 */

import { backward } from "./autograd.ts";
import type { Device } from "./device.ts";
import type { DType } from "./dtype.ts";
import { internally, type Node } from "./graph.ts";
import { abs } from "./ops/abs.ts";
import { add } from "./ops/add.ts";
import { argmax, argmin } from "./ops/argmax.ts";
import { bitcast } from "./ops/bitcast.ts";
import { cast } from "./ops/cast.ts";
import { ceil } from "./ops/ceil.ts";
import { clamp } from "./ops/clamp.ts";
import { cos } from "./ops/cos.ts";
import { cumsum } from "./ops/cumsum.ts";
import { detach } from "./ops/detach.ts";
import { div } from "./ops/div.ts";
import { eq } from "./ops/eq.ts";
import { erf } from "./ops/erf.ts";
import { exp } from "./ops/exp.ts";
import { expand } from "./ops/expand.ts";
import { flip } from "./ops/flip.ts";
import { floor } from "./ops/floor.ts";
import { gather } from "./ops/gather.ts";
import { ge } from "./ops/ge.ts";
import { gelu } from "./ops/gelu.ts";
import { gt } from "./ops/gt.ts";
import { isnan } from "./ops/isnan.ts";
import { le } from "./ops/le.ts";
import { log } from "./ops/log.ts";
import { logSoftmax } from "./ops/log_softmax.ts";
import { logical_and, logical_or, logical_xor } from "./ops/logical.ts";
import { logsumexp } from "./ops/logsumexp.ts";
import { lt } from "./ops/lt.ts";
import { matmul } from "./ops/matmul/mod.ts";
import { max } from "./ops/max.ts";
import { maximum } from "./ops/maximum.ts";
import { mean } from "./ops/mean.ts";
import { min } from "./ops/min.ts";
import { minimum } from "./ops/minimum.ts";
import { mul } from "./ops/mul.ts";
import { ne } from "./ops/ne.ts";
import { neg } from "./ops/neg.ts";
import { not } from "./ops/not.ts";
import { oneHot } from "./ops/one_hot.ts";
import { pad } from "./ops/pad.ts";
import { permute } from "./ops/permute.ts";
import { pow } from "./ops/pow.ts";
import { prod } from "./ops/prod.ts";
import { relu } from "./ops/relu.ts";
import { rem } from "./ops/rem.ts";
import { reshape } from "./ops/reshape.ts";
import { rsqrt } from "./ops/rsqrt.ts";
import { shl, shr } from "./ops/shift.ts";
import { sigmoid } from "./ops/sigmoid.ts";
import { silu } from "./ops/silu.ts";
import { sin } from "./ops/sin.ts";
import { slice } from "./ops/slice.ts";
import { softmax } from "./ops/softmax.ts";
import { softplus } from "./ops/softplus.ts";
import { argsort, sort, topK } from "./ops/sort.ts";
import { split } from "./ops/split.ts";
import { sqrt } from "./ops/sqrt.ts";
import { sub } from "./ops/sub.ts";
import { sum } from "./ops/sum.ts";
import { take } from "./ops/take.ts";
import { tanh } from "./ops/tanh.ts";
import { tril, triu } from "./ops/tril.ts";
import { variance } from "./ops/variance.ts";
import { axisOf, type Shape, show, sizeOf } from "./shape.ts";

/** What `data()` gives: 16-bit floats are widened. */
export type Data<D extends DType> = D extends "f32" | "f16" | "bf16" ? Float32Array<ArrayBuffer>
  : D extends "i32" ? Int32Array<ArrayBuffer>
  : Uint32Array<ArrayBuffer>;

/** One axis, or several. */
export type Axes = number | readonly number[];

/** What an arithmetic method takes beside its tensor. */
export type Operand = Tensor | number;

/**
 * An n-dimensional array on a device. Its methods record; reading (`data()`, `item()`) runs.
 *
 * Shapes broadcast as NumPy's. Two tensors of one operation have one dtype and one device; a number
 * takes the tensor's dtype, and is a per-step value: another number does not make another plan.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const x = tensor([[1, 2], [3, 4]]);
 * const y = x.matmul(x.transpose()).sum(1);
 * console.log(y.shape, await y.data()); // [2] Float32Array [16, 36]
 * ```
 */
export class Tensor<D extends DType = DType> {
  readonly #node: Node;
  /** Sizes of the dimensions, outermost first. */
  readonly shape: Shape;
  /** Type of the elements. */
  readonly dtype: D;

  /** @internal */
  constructor(node: Node) {
    this.#node = node;
    this.shape = node.shape;
    this.dtype = node.dtype as D;
  }

  /**
   * The recorded operation. For the engine and for those who extend it.
   *
   * @internal
   */
  get node(): Node {
    return this.#node;
  }
  /** The device it lives on. */
  get device(): Device {
    return this.#node.device;
  }
  /** Number of dimensions. */
  get rank(): number {
    return this.shape.length;
  }
  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  // Reading.

  /** Runs what is recorded and copies the elements to the host, in row-major order. */
  async data(): Promise<Data<D>> {
    const [data] = await read(this);
    return data as unknown as Data<D>;
  }

  /** The value of a tensor with one element; a bool as 0 or 1. */
  async item(): Promise<number> {
    if (this.size !== 1) {
      throw new RangeError(`item: needs a tensor with one element, got shape ${show(this.shape)}`);
    }
    return (await this.data())[0];
  }

  /** Holds the value on from the next flush, so that it can be read after its inputs change. */
  keep(): this {
    this.device.keeps.add(this.node);
    return this;
  }

  /** The same value, through which no gradient flows. */
  detach(): Tensor<D> {
    return detach(this) as Tensor<D>;
  }

  /**
   * Records the gradient of this scalar with respect to every variable that requires one, and adds it
   * to the variable's `grad`. `seed` is the gradient of the scalar itself, default 1.
   *
   * Throws where this is no scalar and no seed is given, or nothing requires a gradient.
   */
  backward(seed?: Tensor): void {
    internally(() => backward(this, seed));
  }

  // Arithmetic.

  /** `this + other`. */
  add(other: Operand): Tensor<D> {
    return add(this, other) as Tensor<D>;
  }
  /** `this - other`. */
  sub(other: Operand): Tensor<D> {
    return sub(this, other) as Tensor<D>;
  }
  /** `this · other`, element by element. */
  mul(other: Operand): Tensor<D> {
    return mul(this, other) as Tensor<D>;
  }
  /** `this / other`; integers truncate. */
  div(other: Operand): Tensor<D> {
    return div(this, other) as Tensor<D>;
  }
  /** Remainder of the truncated division. */
  rem(other: Operand): Tensor<D> {
    return rem(this, other) as Tensor<D>;
  }
  /** `this` to the power of `other`. */
  pow(other: Operand): Tensor<D> {
    return pow(this, other) as Tensor<D>;
  }
  /** The smaller of both. */
  minimum(other: Operand): Tensor<D> {
    return minimum(this, other) as Tensor<D>;
  }
  /** The larger of both. */
  maximum(other: Operand): Tensor<D> {
    return maximum(this, other) as Tensor<D>;
  }
  /** `-this`. */
  neg(): Tensor<D> {
    return neg(this) as Tensor<D>;
  }
  /** Absolute value. */
  abs(): Tensor<D> {
    return abs(this) as Tensor<D>;
  }
  /** `this · this`. */
  square(): Tensor<D> {
    return mul(this, this) as Tensor<D>;
  }
  /** `1 / this`. */
  reciprocal(): Tensor<D> {
    return div(1, this) as Tensor<D>;
  }
  /** Rounds down. */
  floor(): Tensor<D> {
    return floor(this) as Tensor<D>;
  }
  /** Rounds up. */
  ceil(): Tensor<D> {
    return ceil(this) as Tensor<D>;
  }
  /** Square root. */
  sqrt(): Tensor<D> {
    return sqrt(this) as Tensor<D>;
  }
  /** `1 / √this`. */
  rsqrt(): Tensor<D> {
    return rsqrt(this) as Tensor<D>;
  }
  /** e to the power of `this`. */
  exp(): Tensor<D> {
    return exp(this) as Tensor<D>;
  }
  /** Natural logarithm. */
  log(): Tensor<D> {
    return log(this) as Tensor<D>;
  }
  /** Sine, of radians. */
  sin(): Tensor<D> {
    return sin(this) as Tensor<D>;
  }
  /** Cosine, of radians. */
  cos(): Tensor<D> {
    return cos(this) as Tensor<D>;
  }
  /** Hyperbolic tangent. */
  tanh(): Tensor<D> {
    return tanh(this) as Tensor<D>;
  }
  /** The error function. */
  erf(): Tensor<D> {
    return erf(this) as Tensor<D>;
  }
  /** `1 / (1 + exp(-this))`. */
  sigmoid(): Tensor<D> {
    return sigmoid(this) as Tensor<D>;
  }
  /** `max(this, 0)`. */
  relu(): Tensor<D> {
    return relu(this) as Tensor<D>;
  }
  /** Gaussian error linear unit: exact, or by tanh. See {@linkcode gelu}. */
  gelu(approximate: "none" | "tanh" = "none"): Tensor<D> {
    return gelu(this, approximate) as Tensor<D>;
  }
  /** `this · sigmoid(this)`. */
  silu(): Tensor<D> {
    return silu(this) as Tensor<D>;
  }
  /** `log(1 + exp(this))`. */
  softplus(): Tensor<D> {
    return softplus(this) as Tensor<D>;
  }
  /** Limits to `[low, high]`. */
  clamp(low: number, high: number): Tensor<D> {
    return clamp(this, low, high) as Tensor<D>;
  }
  /** Bits shifted to the left. */
  shl(bits: Operand): Tensor<D> {
    return shl(this, bits) as Tensor<D>;
  }
  /** Bits shifted to the right. */
  shr(bits: Operand): Tensor<D> {
    return shr(this, bits) as Tensor<D>;
  }

  // Comparison.

  /** `this = other`. */
  eq(other: Operand): Tensor<"bool"> {
    return eq(this, other) as Tensor<"bool">;
  }
  /** `this ≠ other`. */
  ne(other: Operand): Tensor<"bool"> {
    return ne(this, other) as Tensor<"bool">;
  }
  /** `this < other`. */
  lt(other: Operand): Tensor<"bool"> {
    return lt(this, other) as Tensor<"bool">;
  }
  /** `this ≤ other`. */
  le(other: Operand): Tensor<"bool"> {
    return le(this, other) as Tensor<"bool">;
  }
  /** `this > other`. */
  gt(other: Operand): Tensor<"bool"> {
    return gt(this, other) as Tensor<"bool">;
  }
  /** `this ≥ other`. */
  ge(other: Operand): Tensor<"bool"> {
    return ge(this, other) as Tensor<"bool">;
  }
  /** Whether it is no number. */
  isnan(): Tensor<"bool"> {
    return isnan(this) as Tensor<"bool">;
  }
  /** Logical negation of a bool, bits of an integer. */
  not(): Tensor<D> {
    return not(this) as Tensor<D>;
  }
  /** Logical or bitwise and. */
  and(other: Operand): Tensor<D> {
    return logical_and(this, other) as Tensor<D>;
  }
  /** Logical or bitwise or. */
  or(other: Operand): Tensor<D> {
    return logical_or(this, other) as Tensor<D>;
  }
  /** Logical or bitwise exclusive or. */
  xor(other: Operand): Tensor<D> {
    return logical_xor(this, other) as Tensor<D>;
  }

  // Types.

  /** Converts the elements: floats to integers truncate and saturate. */
  to<E extends DType>(dtype: E): Tensor<E> {
    return cast(this, dtype) as Tensor<E>;
  }
  /** The same 32 bits as another type. */
  bitcast<E extends "f32" | "i32" | "u32">(dtype: E): Tensor<E> {
    return bitcast(this, dtype) as Tensor<E>;
  }

  // Reduction.

  /** Sum along `axes` (default: all). */
  sum(axes?: Axes, keepDims = false): Tensor<D> {
    return sum(this, axes, keepDims) as Tensor<D>;
  }
  /** Product along `axes`. */
  prod(axes?: Axes, keepDims = false): Tensor<D> {
    return prod(this, axes, keepDims) as Tensor<D>;
  }
  /** Mean along `axes`. */
  mean(axes?: Axes, keepDims = false): Tensor<D> {
    return mean(this, axes, keepDims) as Tensor<D>;
  }
  /** Largest along `axes`. */
  max(axes?: Axes, keepDims = false): Tensor<D> {
    return max(this, axes, keepDims) as Tensor<D>;
  }
  /** Smallest along `axes`. */
  min(axes?: Axes, keepDims = false): Tensor<D> {
    return min(this, axes, keepDims) as Tensor<D>;
  }
  /** Variance along `axes`; `correction` is taken from the count (1: the sample variance). */
  var(axes?: Axes, keepDims = false, correction = 1): Tensor<D> {
    return variance(this, axes, keepDims, correction) as Tensor<D>;
  }
  /** Index of the first largest along `axis`. */
  argmax(axis = -1, keepDims = false): Tensor<"i32"> {
    return argmax(this, axis, keepDims) as Tensor<"i32">;
  }
  /** Index of the first smallest along `axis`. */
  argmin(axis = -1, keepDims = false): Tensor<"i32"> {
    return argmin(this, axis, keepDims) as Tensor<"i32">;
  }
  /** `log Σ exp` along `axes`, without overflow. */
  logsumexp(axes?: Axes, keepDims = false): Tensor<D> {
    return logsumexp(this, axes, keepDims) as Tensor<D>;
  }
  /** `exp(x) / Σ exp(x)` along `axis`. */
  softmax(axis = -1): Tensor<D> {
    return softmax(this, axis) as Tensor<D>;
  }
  /** `log softmax` along `axis`. */
  logSoftmax(axis = -1): Tensor<D> {
    return logSoftmax(this, axis) as Tensor<D>;
  }
  /** Running sum along `axis`. */
  cumsum(axis = -1): Tensor<D> {
    return cumsum(this, axis) as Tensor<D>;
  }
  /** Sorted along `axis`. */
  sort(axis = -1, descending = false): { values: Tensor<D>; indices: Tensor<"i32"> } {
    return sort(this, axis, descending) as { values: Tensor<D>; indices: Tensor<"i32"> };
  }
  /** Indices that sort along `axis`; equal elements keep their order. */
  argsort(axis = -1, descending = false): Tensor<"i32"> {
    return argsort(this, axis, descending) as Tensor<"i32">;
  }
  /** The `k` largest along `axis`, largest first. */
  topK(k: number, axis = -1): { values: Tensor<D>; indices: Tensor<"i32"> } {
    return topK(this, k, axis) as { values: Tensor<D>; indices: Tensor<"i32"> };
  }

  // Shape.

  /** The same elements in another shape; one size may be -1. */
  reshape(...shape: readonly number[] | [Shape]): Tensor<D> {
    return reshape(this, flat(shape)) as Tensor<D>;
  }
  /** Dimensions in another order. */
  permute(...order: readonly number[] | [readonly number[]]): Tensor<D> {
    return permute(this, flat(order)) as Tensor<D>;
  }
  /** Two dimensions exchanged, by default the last two. */
  transpose(a = -2, b = -1): Tensor<D> {
    const order = this.shape.map((_, d) => d);
    const i = axisOf("transpose", a, this.shape);
    const j = axisOf("transpose", b, this.shape);
    [order[i], order[j]] = [order[j], order[i]];
    return permute(this, order) as Tensor<D>;
  }
  /** All dimensions from `start` to `end` (both included) as one. */
  flatten(start = 0, end = -1): Tensor<D> {
    if (this.rank === 0) return this.reshape(1);
    const i = axisOf("flatten", start, this.shape);
    const j = axisOf("flatten", end, this.shape);
    const middle = sizeOf(this.shape.slice(i, j + 1));
    return this.reshape([...this.shape.slice(0, i), middle, ...this.shape.slice(j + 1)]);
  }
  /** A new dimension of size 1 at `axis`. */
  unsqueeze(axis: number): Tensor<D> {
    const at = axisOf("unsqueeze", axis, [...this.shape, 1]);
    return this.reshape(this.shape.toSpliced(at, 0, 1));
  }
  /** Without the dimension `axis`, which must have size 1. */
  squeeze(axis: number): Tensor<D> {
    const at = axisOf("squeeze", axis, this.shape);
    if (this.shape[at] !== 1) {
      throw new RangeError(`squeeze: needs size 1 along axis ${at}, got shape ${show(this.shape)}`);
    }
    return this.reshape(this.shape.toSpliced(at, 1));
  }
  /** Elements from `start` below `end` (default: all the rest) along `axis`; negatives count from the end. */
  slice(axis: number, start: number, end?: number, step = 1): Tensor<D> {
    return slice(this, axis, start, end, step) as Tensor<D>;
  }
  /** One element along `axis`, without that dimension. */
  select(axis: number, index: number): Tensor<D> {
    const at = axisOf("select", axis, this.shape);
    const i = index < 0 ? index + this.shape[at] : index;
    if (!Number.isInteger(i) || i < 0 || i >= this.shape[at]) {
      throw new RangeError(
        `select: index ${index} is out of range for axis ${at} of shape ${show(this.shape)}`,
      );
    }
    return this.slice(at, i, i + 1).squeeze(at);
  }
  /** Stretches dimensions of size 1. */
  expand(...shape: readonly number[] | [Shape]): Tensor<D> {
    return expand(this, flat(shape)) as Tensor<D>;
  }
  /** Back to front along `axes`. */
  flip(axes: Axes): Tensor<D> {
    return flip(this, axes) as Tensor<D>;
  }
  /** `before` and `after` elements of `value` around `axis`. */
  pad(axis: number, before: number, after: number, value = 0): Tensor<D> {
    return pad(this, axis, before, after, value) as Tensor<D>;
  }
  /** Parts of the given sizes, or of one size, along `axis`. */
  split(sizes: number | readonly number[], axis = 0): Tensor<D>[] {
    return split(this, sizes, axis) as Tensor<D>[];
  }
  /** Zero above diagonal `k` of the last two dimensions. */
  tril(k = 0): Tensor<D> {
    return tril(this, k) as Tensor<D>;
  }
  /** Zero below diagonal `k` of the last two dimensions. */
  triu(k = 0): Tensor<D> {
    return triu(this, k) as Tensor<D>;
  }

  // Products and indexing.

  /** Matrix product of the last two dimensions; leading ones broadcast. */
  matmul(other: Tensor): Tensor<D> {
    return matmul(this, other) as Tensor<D>;
  }
  /** Rows (of `axis`) at `indices`: shape before axis, shape of indices, shape after. */
  take(indices: Tensor, axis = 0): Tensor<D> {
    return take(this, indices, axis) as Tensor<D>;
  }
  /** Along `axis`, at each place the element that `indices` names there. */
  gather(axis: number, indices: Tensor): Tensor<D> {
    return gather(this, axis, indices) as Tensor<D>;
  }
  /** Indices as rows of zeros with a one. */
  oneHot(depth: number): Tensor<"f32"> {
    return oneHot(this, depth) as Tensor<"f32">;
  }
}

function flat(list: readonly number[] | [Shape]): Shape {
  return Array.isArray(list[0]) ? list[0] : list as readonly number[];
}

/** The results of {@linkcode read}. */
export type ReadResult<T extends readonly Tensor[]> = {
  [K in keyof T]: T[K] extends Tensor<infer D> ? Data<D> : never;
};

/**
 * Reads several tensors of one device at once: one run, one transfer.
 *
 * @example
 * ```ts
 * import { init, read, tensor } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const x = tensor([1, 2, 3]);
 * const [total, largest] = await read(x.sum(), x.max());
 * console.log(total[0], largest[0]); // 6 3
 * ```
 */
export async function read<const T extends readonly Tensor[]>(
  ...tensors: T
): Promise<ReadResult<T>> {
  const nodes = tensors.map((t) => t.node);
  const device = nodes[0]?.device;
  for (const n of nodes) {
    if (n.device !== device) {
      throw new TypeError(
        `read: needs tensors of one device, got ${device?.name} and ${n.device.name}`,
      );
    }
  }
  // A view of something known is as good as computed; only what is not known runs.
  if (device) await device.evaluate(nodes);
  const out = await Promise.all(nodes.map(async (node) => {
    const bytes = await node.device.bytes(node);
    const count = sizeOf(node.shape);
    switch (node.dtype) {
      case "f32":
        return new Float32Array(bytes, 0, count);
      case "i32":
        return new Int32Array(bytes, 0, count);
      case "f16":
        return new Float32Array(new Float16Array(bytes, 0, count));
      case "bf16":
        return widenBf16(new Uint16Array(bytes, 0, count));
      default:
        return new Uint32Array(bytes, 0, count);
    }
  }));
  return out as unknown as ReadResult<T>;
}

/**
 * As {@linkcode Tensor.data}, of a tensor that the caller alone has and reads once: nothing is copied.
 *
 * @internal
 */
export async function readOnce(x: Tensor<"f32">): Promise<Float32Array<ArrayBuffer>> {
  const { node, device } = x;
  await device.evaluate([node]);
  return new Float32Array(await device.bytes(node, true), 0, x.size);
}

function widenBf16(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const words = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) words[i] = bits[i] << 16;
  return new Float32Array(words.buffer);
}

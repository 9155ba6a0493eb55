/**
 * Frozen matrices held in 8 or 4 bits, and products with them.
 *
 * @module
 */

import { noGrad } from "./autograd.ts";
import { currentDevice, type Device } from "./device.ts";
import { dequantize, type Packing, perWord, type QuantizedFormat } from "./ops/dequantize.ts";
import { quantize } from "./ops/quantize.ts";
import { product } from "./ops/quantized_matmul/mod.ts";
import { sameShape, show } from "./shape.ts";
import type { Tensor } from "./tensor.ts";
import { Variable } from "./variable.ts";

export type { QuantizedFormat } from "./ops/dequantize.ts";

/** The most elements that share a scale, as in QLoRA. */
const BLOCK = 64;

/** Options of a {@linkcode QuantizedMatrix}. */
export interface QuantizedOptions {
  /** How a code stands for a number. Default "nf4". */
  readonly format?: QuantizedFormat;
  /**
   * The most neighbours in a row that share a scale. Blocks are the largest that divide a row evenly.
   * Default 64.
   */
  readonly blockSize?: number;
}

/**
 * A frozen matrix [rows, columns] in 8 or 4 bits an element and a 32-bit scale, the largest magnitude,
 * for each block of a row. Products compute from the packed form: the matrix is never in memory as
 * floats.
 *
 * "int8" holds whole numbers from -127 to 127, "nf4" the 16 values of NormalFloat.
 *
 * Source: Dettmers et al. 2023, "QLoRA: Efficient finetuning of quantized LLMs", section 3, without
 * the second quantization of the scales.
 *
 * @example
 * ```ts
 * import { init, QuantizedMatrix, tensor } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const data = Float32Array.from({ length: 16 }, (_, i) => i / 16);
 * const w = QuantizedMatrix.from(tensor(data, { shape: [2, 8] }), { format: "int8" });
 * const y = w.multiply(tensor([[1, 0, 0, 0, 0, 0, 0, 0]])); // x Wᵀ
 * console.log(y.shape, w.bytes); // [1, 2] 24
 * ```
 */
export class QuantizedMatrix {
  /** How a code stands for a number. */
  readonly format: QuantizedFormat;
  /** Rows and columns. */
  readonly shape: readonly [rows: number, columns: number];
  /** Elements that share a scale. */
  readonly block: number;
  /** The codes, 4 or 8 of them a word, the first in the lowest bits: u32 [words]. */
  readonly words: Variable<"u32">;
  /** The largest magnitude of each block, [blocks]. */
  readonly scales: Variable<"f32">;

  /**
   * A matrix on `device`, by default the current one, which holds nothing until it is assigned to.
   *
   * Throws a `RangeError` where a row holds no whole word of codes, or a block none.
   */
  constructor(
    shape: readonly [rows: number, columns: number],
    options: QuantizedOptions = {},
    device: Device = currentDevice(),
  ) {
    this.format = options.format ?? "nf4";
    this.shape = shape;
    this.block = QuantizedMatrix.blockOf(shape, options);
    const size = shape[0] * shape[1];
    this.words = Variable.empty([size / perWord(this.format)], "u32", {}, device);
    this.scales = Variable.empty([size / this.block], "f32", {}, device);
  }

  /**
   * `x` [rows, columns] in packed form, on its device.
   *
   * Throws as the constructor does.
   */
  static from(x: Tensor, options: QuantizedOptions = {}): QuantizedMatrix {
    const [rows, columns] = x.shape;
    return new QuantizedMatrix([rows, columns], options, x.device).assign(x);
  }

  /**
   * How many elements share a scale in a matrix of that shape: the largest block up to `blockSize` that
   * divides a row evenly and holds whole words.
   *
   * Throws a `RangeError` where there is none.
   */
  static blockOf(
    shape: readonly [rows: number, columns: number],
    options: QuantizedOptions = {},
  ): number {
    const { format = "nf4", blockSize = BLOCK } = options;
    const columns = shape[1];
    const each = perWord(format);
    if (columns === 0 || columns % each !== 0) {
      throw new RangeError(
        `quantize: ${format} needs rows of a multiple of ${each} elements, got ${show(shape)}`,
      );
    }
    if (!(blockSize >= each)) {
      throw new RangeError(
        `quantize: ${format} needs a blockSize from ${each} on, got ${blockSize}`,
      );
    }
    let block = Math.min(columns, Math.floor(blockSize / each) * each);
    while (columns % block !== 0) block -= each;
    return block;
  }

  /** Bytes on the device. */
  get bytes(): number {
    return 4 * (this.words.size + this.scales.size);
  }

  get #packing(): Packing {
    const { format, shape: [rows, columns], block } = this;
    return { format, rows, columns, block };
  }

  /**
   * Records that the nearest codes of `x` take the place of what is held: the matrix of before is not
   * read. What `dequantize()` gave is held again to the bit. An element that is not finite makes its
   * block undefined.
   *
   * Throws a `RangeError` on another shape, a `TypeError` on another dtype than f32.
   */
  assign(x: Tensor): this {
    if (!sameShape(x.shape, this.shape)) {
      throw new RangeError(
        `QuantizedMatrix: needs shape ${show(this.shape)}, got ${show(x.shape)}`,
      );
    }
    if (x.dtype !== "f32") throw new TypeError(`QuantizedMatrix: needs dtype f32, got ${x.dtype}`);
    noGrad(() => {
      const { words, scales } = quantize(x, this.#packing);
      this.words.assign(words as Tensor<"u32">);
      this.scales.assign(scales as Tensor<"f32">);
    });
    return this;
  }

  /** `x` [rows, columns] rounded to the nearest codes: what `assign(x)` would make of it, as floats. */
  round(x: Tensor): Tensor<"f32"> {
    const { words, scales } = quantize(x, this.#packing);
    return dequantize(words, scales, this.#packing);
  }

  /** The matrix as floats, [rows, columns]. */
  dequantize(): Tensor<"f32"> {
    return dequantize(this.words, this.scales, this.#packing);
  }

  /**
   * x Wᵀ: [..., columns] -> [..., rows]. The gradient flows to x alone.
   *
   * Throws a `RangeError` where the last size of x is another, a `TypeError` where x is not f32.
   */
  multiply(x: Tensor): Tensor {
    const [rows, columns] = this.shape;
    if (x.shape.at(-1) !== columns) {
      throw new RangeError(`QuantizedMatrix: needs [..., ${columns}], got ${show(x.shape)}`);
    }
    if (x.dtype !== "f32") {
      throw new TypeError(
        `QuantizedMatrix: needs dtype f32, got ${x.dtype}; convert with .to("f32")`,
      );
    }
    const y = product(x.reshape(-1, columns), this.words, this.scales, this.#packing);
    return y.reshape([...x.shape.slice(0, -1), rows]);
  }

  /** Frees the memory now. */
  dispose(): void {
    this.words.dispose();
    this.scales.dispose();
  }
}

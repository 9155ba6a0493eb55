/**
 * Frozen matrices held in 8 or 4 bits, and products with them.
 *
 * @module
 */

import { customFunction } from "./autograd.ts";
import { fromBytes } from "./create.ts";
import { currentDevice, type Device } from "./device.ts";
import { iota } from "./ops/iota.ts";
import { NF4, nf4 } from "./ops/nf4.ts";
import { show } from "./shape.ts";
import type { Tensor } from "./tensor.ts";
import { Variable } from "./variable.ts";

/** How numbers are held: whole numbers from -127 to 127, or the 16 values of NormalFloat. */
export type QuantizedFormat = "int8" | "nf4";

/** A matrix in packed form on the host. */
export interface PackedMatrix {
  /** How a code stands for a number. */
  readonly format: QuantizedFormat;
  /** Rows and columns. */
  readonly shape: readonly [rows: number, columns: number];
  /** Elements of a row that share a scale. */
  readonly block: number;
  /** Codes, 4 or 8 of them a word, the first in the lowest bits. */
  readonly words: Uint32Array<ArrayBuffer>;
  /** The largest magnitude of each block. */
  readonly scales: Float32Array<ArrayBuffer>;
}

/** The most elements that share a scale, as in QLoRA. */
const BLOCK = 64;

/**
 * Packs a matrix, row-major, with a scale for each block of a row: the largest block size up to `block`
 * that divides the row evenly and holds whole words. Each element becomes the nearest code.
 *
 * Throws where a row holds no whole word of codes, or an element is not finite.
 */
export function packMatrix(
  data: Float32Array,
  shape: readonly [rows: number, columns: number],
  format: QuantizedFormat,
  block: number = BLOCK,
): PackedMatrix {
  const [rows, columns] = shape;
  const perWord = format === "nf4" ? 8 : 4;
  if (columns % perWord !== 0) {
    throw new RangeError(
      `quantize: ${format} needs rows of a multiple of ${perWord} elements, got ${show(shape)}`,
    );
  }
  let each = Math.min(columns, Math.floor(block / perWord) * perWord);
  while (columns % each !== 0) each -= perWord;
  const words = new Uint32Array(rows * columns / perWord);
  const scales = new Float32Array(rows * columns / each);
  const bits = 32 / perWord;
  for (let b = 0; b < scales.length; b++) {
    let largest = 0;
    for (let i = b * each; i < (b + 1) * each; i++) {
      if (!Number.isFinite(data[i])) {
        throw new RangeError(`quantize: element ${i} of ${show(shape)} is ${data[i]}`);
      }
      largest = Math.max(largest, Math.abs(data[i]));
    }
    scales[b] = largest;
    for (let i = b * each; i < (b + 1) * each; i++) {
      const x = largest === 0 ? 0 : data[i] / largest;
      const code = format === "nf4" ? nearestNf4(x) : Math.round(x * 127) & 255;
      words[Math.floor(i / perWord)] |= code << (bits * (i % perWord));
    }
  }
  return { format, shape, block: each, words, scales };
}

/** The code of the nearest value. */
function nearestNf4(x: number): number {
  let low = 0;
  let high = 15;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (NF4[middle] <= x) low = middle;
    else high = middle;
  }
  return x - NF4[low] <= NF4[high] - x ? low : high;
}

/**
 * A frozen matrix [rows, columns] in 8 or 4 bits an element. Products compute from the packed form: its
 * numbers exist as floats only while one product runs.
 *
 * Source: Dettmers et al. 2023, "QLoRA: Efficient finetuning of quantized LLMs", section 3, without
 * the second quantization of the scales.
 *
 * @example
 * ```ts
 * import { init, packMatrix, QuantizedMatrix, tensor } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const data = Float32Array.from({ length: 16 }, (_, i) => i / 16);
 * const w = new QuantizedMatrix(packMatrix(data, [2, 8], "int8"));
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
  /** The codes, [words]. */
  readonly words: Variable<"u32">;
  /** The scales, [blocks]. */
  readonly scales: Variable<"f32">;

  /** On `device`, by default the current one. */
  constructor(packed: PackedMatrix, device: Device = currentDevice()) {
    this.format = packed.format;
    this.shape = packed.shape;
    this.block = packed.block;
    const { words, scales } = packed;
    this.words = new Variable(fromBytes(words, [words.length], "u32", device));
    this.scales = new Variable(fromBytes(scales, [scales.length], "f32", device));
  }

  /** Bytes on the device. */
  get bytes(): number {
    return 4 * (this.words.size + this.scales.size);
  }

  /** The matrix as floats, [rows, columns]. */
  dequantize(): Tensor<"f32"> {
    const [rows, columns] = this.shape;
    const perWord = this.format === "nf4" ? 8 : 4;
    const bits = 32 / perWord;
    const blocks = columns / this.block;
    // [rows, blocks, words of a block, codes of a word]
    const words = this.words.reshape(rows, blocks, this.block / perWord, 1);
    const place = iota([perWord], 0, "u32", this.words.device);
    const scales = this.scales.reshape(rows, blocks, 1, 1);
    const values = this.format === "nf4"
      ? nf4(words.shr(place.mul(bits)).and(15))
      // Shifted up and down again, so that the sign spreads.
      : words.bitcast("i32").shl(place.mul(-bits).add(32 - bits).bitcast("i32")).shr(32 - bits)
        .to("f32").mul(1 / 127);
    return values.mul(scales).reshape(rows, columns) as Tensor<"f32">;
  }

  /**
   * x Wᵀ: [..., columns] -> [..., rows]. The gradient flows to x alone.
   *
   * Throws a `RangeError` where the last size of x is another.
   */
  multiply(x: Tensor): Tensor {
    if (x.shape.at(-1) !== this.shape[1]) {
      throw new RangeError(
        `QuantizedMatrix: needs [..., ${this.shape[1]}], got ${show(x.shape)}`,
      );
    }
    return customFunction(
      [x],
      ([x]) => x.matmul(this.dequantize().transpose()),
      // Made into floats anew: held from forward on, they would cost what packing saved.
      ({ g }) => [g.matmul(this.dequantize())],
    );
  }

  /** Frees the memory now. */
  dispose(): void {
    this.words.dispose();
    this.scales.dispose();
  }
}

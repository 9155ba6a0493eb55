import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";
import { nf4 } from "./nf4.ts";

/** How numbers are held: whole numbers from -127 to 127, or the 16 values of NormalFloat. */
export type QuantizedFormat = "int8" | "nf4";

/** How a matrix is packed. */
export interface Packing {
  /** How a code stands for a number. */
  readonly format: QuantizedFormat;
  readonly rows: number;
  readonly columns: number;
  /** Neighbours in a row that share a scale: whole words, and a divisor of `columns`. */
  readonly block: number;
}

/** Codes that one word of 32 bits holds, the first in the lowest bits. */
export function perWord(format: QuantizedFormat): number {
  return format === "nf4" ? 8 : 4;
}

/** The matrix [rows, columns] that codes, u32 [words], and scales, [blocks], stand for. */
export function dequantize(words: Tensor, scales: Tensor, packing: Packing): Tensor<"f32"> {
  const { format, rows, columns, block } = packing;
  const each = perWord(format);
  const bits = 32 / each;
  const blocks = columns / block;
  // [rows, blocks, words of a block, codes of a word]
  const split = words.reshape(rows, blocks, block / each, 1);
  const place = iota([each], 0, "u32", words.device);
  const levels = format === "nf4"
    ? nf4(split.shr(place.mul(bits)).and(15))
    // Shifted up and down again, so that the sign spreads.
    : split.bitcast("i32").shl(place.mul(-bits).add(32 - bits).bitcast("i32")).shr(32 - bits)
      .to("f32").mul(1 / 127);
  return levels.mul(scales.reshape(rows, blocks, 1, 1)).reshape(rows, columns) as Tensor<"f32">;
}

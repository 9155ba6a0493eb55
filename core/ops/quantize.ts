import type { Tensor } from "../tensor.ts";
import { type Packing, perWord } from "./dequantize.ts";
import { iota } from "./iota.ts";
import { nf4Code } from "./nf4.ts";

/**
 * The codes, u32 [words], and scales, [blocks], that stand for `x` [rows, columns]: the scale of a block
 * is its largest magnitude, and each element becomes the nearest code. The inverse of `dequantize`,
 * which this gives back to the bit what it gave.
 */
export function quantize(x: Tensor, packing: Packing): { words: Tensor; scales: Tensor } {
  const { format, rows, columns, block } = packing;
  const each = perWord(format);
  const split = x.reshape(rows, columns / block, block);
  const scales = split.abs().max(2, true); // [rows, blocks, 1]
  const codes = format === "nf4"
    ? nf4Code(split, scales)
    // The bound keeps a block of zeros from 0 / 0.
    : split.div(scales.maximum(2 ** -100)).mul(127).add(0.5).floor().to("i32")
      .bitcast("u32").and(255);
  const place = iota([each], 0, "u32", x.device).mul(32 / each);
  const words = codes.reshape(-1, each).shl(place).sum(1);
  return { words, scales: scales.flatten() };
}

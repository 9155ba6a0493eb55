/**
 * Packed codes as vectors of floats: sixteen codes, a byte each, become four vectors.
 *
 * @module
 */

import { type Code, f32x4, i16x8, i32x4, type KernelFunc, v128 } from "../../wasm.ts";
import type { QuantizedFormat } from "../dequantize.ts";
import { NF4 } from "../nf4.ts";

/** Byte p of value i of NF4 stands at place i of plane p: a swizzle by codes looks it up. */
const PLANES: readonly (readonly number[])[] = [0, 1, 2, 3].map((p) => {
  const values = new Uint8Array(Float32Array.from(NF4).buffer);
  const plane = Uint8Array.from({ length: 16 }, (_, i) => values[4 * i + p]);
  return [...new Int32Array(plane.buffer)];
});

/** Byte i of `a`, then of `b`: from the lower halves, or from the upper ones. */
const LOWER = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((i) => [i, 16 + i]);
const UPPER = LOWER.map((i) => i + 8);
/** The same for pairs of bytes. */
const LOWER_PAIRS = [0, 2, 4, 6].flatMap((i) => [i, i + 1, 16 + i, 17 + i]);
const UPPER_PAIRS = LOWER_PAIRS.map((i) => i + 8);

/** The low and the high four bits of each byte. */
export function nibbles(f: KernelFunc, bytes: Code): { low: Code; high: Code } {
  const mask = f.hoist(i32x4.const(0x0f0f0f0f));
  return {
    low: f.let(v128.and(bytes, mask)),
    high: f.let(v128.and(i32x4.shr_u(bytes, 4), mask)),
  };
}

/** The codes of eight bytes' nibbles in their order in memory: bytes 0 to 7, or 8 to 15. */
export function interleaved(f: KernelFunc, pair: { low: Code; high: Code }, upper = false): Code {
  return f.let(v128.shuffle_bytes(pair.low, pair.high, upper ? UPPER : LOWER));
}

/** What sixteen codes stand for before they are scaled, as four vectors, the first codes first. */
export function levels(f: KernelFunc, format: QuantizedFormat, codes: Code): Code[] {
  if (format === "int8") {
    const unit = f.hoist(f32x4.const(1 / 127));
    const halves = [i16x8.extend_low_i8x16_s(codes), i16x8.extend_high_i8x16_s(codes)];
    return halves.map((half) => f.let(half)).flatMap((half) =>
      [i32x4.extend_low_i16x8_s(half), i32x4.extend_high_i16x8_s(half)].map((quarter) =>
        f.let(f32x4.mul(f32x4.convert_i32x4_s(quarter), unit))
      )
    );
  }
  const [p0, p1, p2, p3] = PLANES.map((words) =>
    f.let(v128.swizzle(f.hoist(i32x4.const(...words)), codes))
  );
  return [LOWER, UPPER].flatMap((order) => {
    const low = f.let(v128.shuffle_bytes(p0, p1, order));
    const high = f.let(v128.shuffle_bytes(p2, p3, order));
    return [LOWER_PAIRS, UPPER_PAIRS].map((pairs) => f.let(v128.shuffle_bytes(low, high, pairs)));
  });
}

/**
 * Random tensors from a counter-based generator: Threefry-2x32 with 20 rounds (Salmon et al. 2011,
 * "Parallel random numbers: as easy as 1, 2, 3"). The integers are the same to the bit on every
 * backend; the floats made from them are the same to rounding.
 *
 * @module
 */

import { currentDevice } from "./device.ts";
import { apply, bitcast, constant, type Expr } from "./expr.ts";
import { defaultGenerator, type Generator } from "./generator.ts";
import { withoutGradients } from "./graph.ts";
import { pointwise, type PointwiseFunction, scalar } from "./op.ts";
import { iota } from "./ops/iota.ts";
import { checkShape, type Shape, show, sizeOf } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const ROTATIONS = [13, 15, 26, 6, 17, 29, 16, 24];
const PARITY = 0x1bd11bda;
const MASK = 0xffffffff;

/** The first word of Threefry-2x32-20 of key (k0, k1) at counter (c0, c1). */
const threefry: PointwiseFunction = pointwise({
  name: "threefry",
  expr: ([k0, k1, c1, c0]) => {
    const u = (value: number): Expr => constant("u32", value >>> 0);
    const keys = [k0, k1, apply("xor", apply("xor", k0, k1), u(PARITY))];
    let a: Expr = apply("add", c0, keys[0]);
    let b: Expr = apply("add", c1, keys[1]);
    for (let round = 0; round < 20; round++) {
      const r = ROTATIONS[round % 8];
      a = apply("add", a, b);
      b = apply("or", apply("shl", b, u(r)), apply("shr", b, u(32 - r)));
      b = apply("xor", b, a);
      if (round % 4 === 3) {
        const block = (round + 1) / 4;
        a = apply("add", a, keys[block % 3]);
        b = apply("add", apply("add", b, keys[(block + 1) % 3]), u(block));
      }
    }
    return a;
  },
  gradient: null,
  reference: (k0, k1, c1, c0) => threefryWord(k0, k1, c0, c1),
  domain: [[0, 2 ** 31], [0, 2 ** 31], [0, 1000], [0, 1000]],
  dtypes: ["u32"],
  cost: 120,
});

/** Threefry-2x32-20 on the host, for tests. */
export function threefryWord(k0: number, k1: number, c0: number, c1: number): number {
  const keys = [k0, k1, k0 ^ k1 ^ PARITY];
  let a = (c0 + keys[0]) & MASK;
  let b = (c1 + keys[1]) & MASK;
  for (let round = 0; round < 20; round++) {
    const r = ROTATIONS[round % 8];
    a = (a + b) | 0;
    b = ((b << r) | (b >>> (32 - r))) ^ a;
    if (round % 4 === 3) {
      const block = (round + 1) / 4;
      a = (a + keys[block % 3]) | 0;
      b = (b + keys[(block + 1) % 3] + block) | 0;
    }
  }
  return a >>> 0;
}

/** Options of every draw. */
export interface RandomOptions {
  /** Where the draw comes from; default {@linkcode defaultGenerator}. */
  readonly generator?: Generator;
}

/** 32 random bits for each element. */
export function randomBits(shape: Shape, options: RandomOptions = {}): Tensor<"u32"> {
  checkShape("random", shape);
  const device = currentDevice();
  const { key0, key1, counter } = (options.generator ?? defaultGenerator()).next();
  const size = sizeOf(shape);
  const index = iota([size], 0, "u32", device).reshape(shape);
  return threefry(
    scalar(key0, "u32", device),
    scalar(key1, "u32", device),
    scalar(counter, "u32", device),
    index,
  ) as Tensor<"u32">;
}

/** The upper 24 bits as a float in [0, 1). */
const unit: PointwiseFunction = pointwise({
  name: "unit",
  expr: ([bits]) => {
    // 1.xxx by the exponent's bits, less 1: exact on every device.
    const mantissa = apply(
      "or",
      apply("shr", bits, constant("u32", 9)),
      constant("u32", 0x3f800000),
    );
    return apply("sub", bitcast(mantissa, "f32"), constant("f32", 1));
  },
  gradient: null,
  reference: (bits) => (bits >>> 9) / 2 ** 23,
  domain: [[0, 2 ** 32]],
  dtypes: ["u32"],
  output: "f32",
});

/** Options of {@linkcode uniform}. */
export interface UniformOptions extends RandomOptions {
  /** Smallest value, default 0. */
  readonly low?: number;
  /** Upper bound, not reached, default 1. */
  readonly high?: number;
}

/** Uniform draws in [low, high): multiples of 2⁻²³ of the width. */
export function uniform(shape: Shape, options: UniformOptions = {}): Tensor<"f32"> {
  const { low = 0, high = 1 } = options;
  if (!(low <= high)) throw new RangeError(`uniform: needs low ≤ high, got ${low} and ${high}`);
  return withoutGradients(() => {
    const u = unit(randomBits(shape, options)) as Tensor<"f32">;
    return low === 0 && high === 1 ? u : u.mul(high - low).add(low);
  });
}

/** Options of {@linkcode normal}. */
export interface NormalOptions extends RandomOptions {
  /** Default 0. */
  readonly mean?: number;
  /** Standard deviation, default 1. */
  readonly std?: number;
}

/** Normal draws, by the transform of Box and Muller (1958). */
export function normal(shape: Shape, options: NormalOptions = {}): Tensor<"f32"> {
  const { mean = 0, std = 1 } = options;
  if (!(std >= 0)) throw new RangeError(`normal: needs a standard deviation from 0 on, got ${std}`);
  return withoutGradients(() => {
    // 1 - u lies in (0, 1]: its logarithm is finite.
    const radius = uniform(shape, options).neg().add(1).log().mul(-2).sqrt();
    const z = radius.mul(uniform(shape, options).mul(2 * Math.PI).cos());
    return z.mul(std).add(mean);
  });
}

/**
 * Draws an index from each row of `logits` [..., V] with probability softmax(logits), by the largest
 * of logits plus Gumbel noise (Gumbel 1954).
 */
export function categorical(logits: Tensor, options: RandomOptions = {}): Tensor<"i32"> {
  if (logits.rank === 0) {
    throw new RangeError(`categorical: needs logits [..., V], got shape ${show(logits.shape)}`);
  }
  return withoutGradients(() => {
    const u = uniform(logits.shape, options).add(2 ** -24);
    return logits.sub(u.log().neg().log()).argmax(-1);
  });
}

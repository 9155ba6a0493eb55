import { apply, constant, type Expr, select } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/**
 * The 16 values of NormalFloat: quantiles of the normal distribution, scaled to [-1, 1], with 0 among
 * them (Dettmers et al. 2023, "QLoRA", section 3 and appendix E).
 */
export const NF4: readonly number[] = [
  -1,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1,
];

/** The value of a 4-bit code. */
export const nf4: PointwiseFunction = pointwise({
  name: "nf4",
  // A tree of choices by the code's bits: no table to read.
  expr: ([code]) => {
    let level: Expr[] = NF4.map((v) => constant("f32", v));
    for (let bit = 0; bit < 4; bit++) {
      const one = apply("and", code, constant("u32", 1 << bit));
      const isSet = apply("ne", one, constant("u32", 0));
      level = Array.from(
        { length: level.length / 2 },
        (_, i) => select(isSet, level[2 * i + 1], level[2 * i]),
      );
    }
    return level[0];
  },
  gradient: null,
  reference: (code) => NF4[code & 15],
  domain: [[0, 16]],
  dtypes: ["u32"],
  output: "f32",
  cost: 24,
});

/** Between each two neighbours of {@linkcode NF4}: a number above it is nearer to the upper one. */
const BETWEEN: readonly number[] = NF4.slice(1).map((v, i) => Math.fround((NF4[i] + v) / 2));

/** The 4-bit code whose value is nearest to x / scale; the lower of two that are equally near. */
export const nf4Code: PointwiseFunction = pointwise({
  name: "nf4 code",
  // Compared with scaled bounds: products round the same everywhere, which quotients do not.
  expr: ([x, scale]) =>
    BETWEEN
      .map((bound) => apply("gt", x, apply("mul", scale, constant("f32", bound))))
      .map((above) => select(above, constant("u32", 1), constant("u32", 0)))
      .reduce((sum, one) => apply("add", sum, one)),
  gradient: null,
  reference: (x, scale) => BETWEEN.filter((bound) => x > Math.fround(scale * bound)).length,
  domain: [[-1, 1], [0.5, 1]],
  dtypes: ["f32"],
  output: "u32",
  cost: 60,
});

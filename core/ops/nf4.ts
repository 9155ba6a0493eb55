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

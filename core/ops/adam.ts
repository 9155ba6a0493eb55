import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/*
 * The three assignments of Adam (Kingma and Ba 2015, algorithm 1), an op each: composed of sums and
 * products they would be twenty, recorded anew for each parameter of each step. They are for optimizers
 * and have no gradient.
 */

/** A running mean: mean · decay + x · share. Also momentum, with another share. */
export const runningMean: PointwiseFunction = pointwise({
  name: "runningMean",
  expr: ([mean, x, decay, share]) =>
    apply("add", apply("mul", mean, decay), apply("mul", x, share)),
  gradient: null,
  reference: (mean, x, decay, share) => mean * decay + x * share,
  domain: [[-2, 2], [-2, 2], [0, 1], [0, 1]],
  dtypes: ["f32"],
  cost: 3,
});

/** A running mean of squares: mean · decay + x² · share. */
export const runningMeanOfSquares: PointwiseFunction = pointwise({
  name: "runningMeanOfSquares",
  expr: ([mean, x, decay, share]) =>
    apply("add", apply("mul", mean, decay), apply("mul", apply("mul", x, x), share)),
  gradient: null,
  reference: (mean, x, decay, share) => mean * decay + x * x * share,
  domain: [[0, 2], [-2, 2], [0, 1], [0, 1]],
  dtypes: ["f32"],
  cost: 4,
});

/**
 * A parameter after the step: p · kept - rate · m / (√v / correction + ε), with `correction` the square
 * root of 1 - β₂ᵗ, and `rate` the learning rate over 1 - β₁ᵗ.
 */
export const adamStep: PointwiseFunction = pointwise({
  name: "adamStep",
  expr: ([p, m, v, kept, rate, correction, epsilon]) => {
    const denominator = apply("add", apply("div", apply("sqrt", v), correction), epsilon);
    return apply(
      "sub",
      apply("mul", p, kept),
      apply("mul", apply("div", m, denominator), rate),
    );
  },
  gradient: null,
  reference: (p, m, v, kept, rate, correction, epsilon) =>
    p * kept - m / (Math.sqrt(v) / correction + epsilon) * rate,
  domain: [[-2, 2], [-2, 2], [0, 2], [0.9, 1], [0, 1], [0.1, 1], [0.01, 0.1]],
  dtypes: ["f32"],
  cost: 20,
});

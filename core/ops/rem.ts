import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Remainder of the truncated division: it has the sign of a. */
export const rem: PointwiseFunction = pointwise({
  name: "rem",
  expr: ([a, b]) => apply("rem", a, b),
  gradient: ({ g, inputs: [a, b], needs }) => [
    needs[0] ? g : null,
    // a - b · trunc(a / b): the quotient stands still.
    needs[1] ? g.mul(a.sub(a.rem(b)).div(b)).neg() : null,
  ],
  reference: (a, b) => a % b,
  domain: [[0.1, 0.9], [1, 3]],
  dtypes: NUMBERS,
  cost: 6,
});

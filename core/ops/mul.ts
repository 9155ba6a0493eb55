import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** a · b, element by element. */
export const mul: PointwiseFunction = pointwise({
  name: "mul",
  expr: ([a, b]) => apply("mul", a, b),
  gradient: (
    { g, inputs: [a, b], needs },
  ) => [needs[0] ? g.mul(b) : null, needs[1] ? g.mul(a) : null],
  reference: (a, b) => a * b,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
});

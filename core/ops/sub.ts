import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** a - b. */
export const sub: PointwiseFunction = pointwise({
  name: "sub",
  expr: ([a, b]) => apply("sub", a, b),
  gradient: ({ g }) => [g, g.neg()],
  reference: (a, b) => a - b,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
});

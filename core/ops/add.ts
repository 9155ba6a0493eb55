import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** a + b. */
export const add: PointwiseFunction = pointwise({
  name: "add",
  expr: ([a, b]) => apply("add", a, b),
  gradient: ({ g }) => [g, g],
  reference: (a, b) => a + b,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
});

import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Whether a < b. */
export const lt: PointwiseFunction = pointwise({
  name: "lt",
  expr: ([a, b]) => apply("lt", a, b),
  gradient: null,
  reference: (a, b) => a < b ? 1 : 0,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
  output: "bool",
});

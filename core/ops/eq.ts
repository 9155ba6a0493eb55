import { DTYPES } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Whether a = b. */
export const eq: PointwiseFunction = pointwise({
  name: "eq",
  expr: ([a, b]) => apply("eq", a, b),
  gradient: null,
  reference: (a, b) => a === b ? 1 : 0,
  domain: [[-2, 2], [-2, 2]],
  dtypes: DTYPES,
  output: "bool",
});

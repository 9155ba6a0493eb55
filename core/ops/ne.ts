import { DTYPES } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Whether a ≠ b. */
export const ne: PointwiseFunction = pointwise({
  name: "ne",
  expr: ([a, b]) => apply("ne", a, b),
  gradient: null,
  reference: (a, b) => a !== b ? 1 : 0,
  domain: [[-2, 2], [-2, 2]],
  dtypes: DTYPES,
  output: "bool",
});

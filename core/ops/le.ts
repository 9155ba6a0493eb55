import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Whether a ≤ b. */
export const le: PointwiseFunction = pointwise({
  name: "le",
  expr: ([a, b]) => apply("le", a, b),
  gradient: null,
  reference: (a, b) => a <= b ? 1 : 0,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
  output: "bool",
});

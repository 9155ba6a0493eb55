import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { where } from "./where.ts";

/** The smaller of both; where equal, the gradient goes to a. */
export const minimum: PointwiseFunction = pointwise({
  name: "minimum",
  expr: ([a, b]) => apply("min", a, b),
  gradient: ({ g, inputs: [a, b] }) => [where(a.le(b), g, 0), where(a.le(b), 0, g)],
  reference: Math.min,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
});

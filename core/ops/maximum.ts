import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { where } from "./where.ts";

/** The larger of both; where equal, the gradient goes to a. */
export const maximum: PointwiseFunction = pointwise({
  name: "maximum",
  expr: ([a, b]) => apply("max", a, b),
  gradient: ({ g, inputs: [a, b] }) => [where(a.ge(b), g, 0), where(a.ge(b), 0, g)],
  reference: Math.max,
  domain: [[-2, 2], [-2, 2]],
  dtypes: NUMBERS,
});

import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { where } from "./where.ts";

/** Absolute value. */
export const abs: PointwiseFunction = pointwise({
  name: "abs",
  expr: ([x]) => apply("abs", x),
  gradient: ({ g, inputs: [x] }) => [where(x.lt(0), g.neg(), g)],
  reference: Math.abs,
  domain: [[-2, 2]],
  dtypes: NUMBERS,
  cost: 1,
});

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** e to the power of x. */
export const exp: PointwiseFunction = pointwise({
  name: "exp",
  expr: ([x]) => apply("exp", x),
  gradient: ({ g, out }) => [g.mul(out)],
  reference: Math.exp,
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 10,
});

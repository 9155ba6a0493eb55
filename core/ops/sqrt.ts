import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Square root. */
export const sqrt: PointwiseFunction = pointwise({
  name: "sqrt",
  expr: ([x]) => apply("sqrt", x),
  gradient: ({ g, out }) => [g.div(out).mul(0.5)],
  reference: Math.sqrt,
  domain: [[0.2, 4]],
  dtypes: FLOATS,
  cost: 6,
});

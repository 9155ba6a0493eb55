import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Natural logarithm. */
export const log: PointwiseFunction = pointwise({
  name: "log",
  expr: ([x]) => apply("log", x),
  gradient: ({ g, inputs: [x] }) => [g.div(x)],
  reference: Math.log,
  domain: [[0.1, 5]],
  dtypes: FLOATS,
  cost: 10,
});

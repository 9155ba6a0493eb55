import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** The negative. */
export const neg: PointwiseFunction = pointwise({
  name: "neg",
  expr: ([x]) => apply("neg", x),
  gradient: ({ g }) => [g.neg()],
  reference: (x) => -x,
  domain: [[-2, 2]],
  dtypes: NUMBERS,
  cost: 1,
});

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Whether x is no number. */
export const isnan: PointwiseFunction = pointwise({
  name: "isnan",
  expr: ([x]) => apply("isnan", x),
  gradient: null,
  reference: (x) => Number.isNaN(x) ? 1 : 0,
  domain: [[-2, 2]],
  dtypes: FLOATS,
  output: "bool",
  cost: 1,
});

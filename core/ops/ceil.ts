import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Rounds up. */
export const ceil: PointwiseFunction = pointwise({
  name: "ceil",
  expr: ([x]) => apply("ceil", x),
  gradient: null,
  reference: Math.ceil,
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 1,
});

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Rounds down. */
export const floor: PointwiseFunction = pointwise({
  name: "floor",
  expr: ([x]) => apply("floor", x),
  gradient: null,
  reference: Math.floor,
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 1,
});

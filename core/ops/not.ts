import { INTEGERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Logical negation of a bool; the bits of an integer, inverted. */
export const not: PointwiseFunction = pointwise({
  name: "not",
  expr: ([x]) => apply("not", x),
  gradient: null,
  reference: (x) => ~x,
  domain: [[0, 8]],
  dtypes: INTEGERS,
});

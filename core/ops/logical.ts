import { INTEGERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Truth values or bits of both. */
export const logical_and: PointwiseFunction = pointwise({
  name: "and",
  expr: ([a, b]) => apply("and", a, b),
  gradient: null,
  reference: (a, b) => a & b,
  domain: [[0, 8], [0, 8]],
  dtypes: INTEGERS,
});

/** Truth values or bits of either. */
export const logical_or: PointwiseFunction = pointwise({
  name: "or",
  expr: ([a, b]) => apply("or", a, b),
  gradient: null,
  reference: (a, b) => a | b,
  domain: [[0, 8], [0, 8]],
  dtypes: INTEGERS,
});

/** Truth values or bits of one alone. */
export const logical_xor: PointwiseFunction = pointwise({
  name: "xor",
  expr: ([a, b]) => apply("xor", a, b),
  gradient: null,
  reference: (a, b) => a ^ b,
  domain: [[0, 8], [0, 8]],
  dtypes: INTEGERS,
});

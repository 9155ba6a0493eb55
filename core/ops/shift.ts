import { apply, bitcast } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Bits shifted to the left; the count is taken modulo 32. */
export const shl: PointwiseFunction = pointwise({
  name: "shl",
  expr: ([a, b]) => apply("shl", a, bitcast(b, "u32")),
  gradient: null,
  reference: (a, b) => a << b,
  domain: [[0, 8], [0, 8]],
  dtypes: ["i32", "u32"],
});

/** Bits shifted to the right, with the sign for i32; the count is taken modulo 32. */
export const shr: PointwiseFunction = pointwise({
  name: "shr",
  expr: ([a, b]) => apply("shr", a, bitcast(b, "u32")),
  gradient: null,
  reference: (a, b) => a >> b,
  domain: [[0, 1000], [0, 8]],
  dtypes: ["i32", "u32"],
});

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** 1 / √x. */
export const rsqrt: PointwiseFunction = pointwise({
  name: "rsqrt",
  expr: ([x]) => apply("rsqrt", x),
  gradient: ({ g, inputs: [x], out }) => [g.mul(out).div(x).mul(-0.5)],
  reference: (x) => 1 / Math.sqrt(x),
  domain: [[0.2, 4]],
  dtypes: FLOATS,
  cost: 6,
});

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Cosine, of radians. */
export const cos: PointwiseFunction = pointwise({
  name: "cos",
  expr: ([x]) => apply("cos", x),
  gradient: ({ g, inputs: [x] }) => [g.mul(x.sin().neg())],
  reference: Math.cos,
  domain: [[-6, 6]],
  dtypes: FLOATS,
  cost: 12,
});

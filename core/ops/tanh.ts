import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Hyperbolic tangent. */
export const tanh: PointwiseFunction = pointwise({
  name: "tanh",
  expr: ([x]) => apply("tanh", x),
  gradient: ({ g, out }) => [g.mul(out.square().neg().add(1))],
  reference: Math.tanh,
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 12,
});

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** Sine, of radians. */
export const sin: PointwiseFunction = pointwise({
  name: "sin",
  expr: ([x]) => apply("sin", x),
  gradient: ({ g, inputs: [x] }) => [g.mul(x.cos())],
  reference: Math.sin,
  domain: [[-6, 6]],
  dtypes: FLOATS,
  cost: 12,
});

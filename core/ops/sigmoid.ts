import { FLOATS } from "../dtype.ts";
import { apply, constant, type Expr } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** `1 / (1 + exp(-x))` as an expression, for ops that contain it. */
export function sigmoidOf(x: Expr): Expr {
  const one = constant("f32", 1);
  return apply("div", one, apply("add", one, apply("exp", apply("neg", x))));
}

/** The logistic function, 1 / (1 + exp(-x)). */
export const sigmoid: PointwiseFunction = pointwise({
  name: "sigmoid",
  expr: ([x]) => sigmoidOf(x),
  gradient: ({ g, out }) => [g.mul(out).mul(out.neg().add(1))],
  reference: (x) => 1 / (1 + Math.exp(-x)),
  domain: [[-4, 4]],
  dtypes: FLOATS,
  cost: 14,
});

import { FLOATS } from "../dtype.ts";
import { apply, constant } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** log(1 + exp(x)), written so that it neither overflows nor loses small results. */
export const softplus: PointwiseFunction = pointwise({
  name: "softplus",
  // max(x, 0) + log(1 + exp(-|x|))
  expr: ([x]) => {
    const tail = apply("exp", apply("neg", apply("abs", x)));
    const log = apply("log", apply("add", constant("f32", 1), tail));
    return apply("add", apply("max", x, constant("f32", 0)), log);
  },
  gradient: ({ g, inputs: [x] }) => [g.mul(x.sigmoid())],
  reference: (x) => Math.log1p(Math.exp(x)),
  domain: [[-4, 4]],
  dtypes: FLOATS,
  cost: 24,
});

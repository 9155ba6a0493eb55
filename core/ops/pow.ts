import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { where } from "./where.ts";

/** a to the power of b. */
export const pow: PointwiseFunction = pointwise({
  name: "pow",
  expr: ([a, b]) => apply("pow", a, b),
  gradient: ({ g, inputs: [a, b], out, needs }) => [
    needs[0] ? g.mul(b).mul(a.pow(b.sub(1))) : null,
    // 0 to a positive power does not move with the exponent.
    needs[1] ? where(a.eq(0), 0, g.mul(out).mul(a.abs().log())) : null,
  ],
  reference: Math.pow,
  domain: [[0.3, 2], [-2, 2]],
  dtypes: FLOATS,
  cost: 20,
});

import { NUMBERS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** a / b; integers truncate. */
export const div: PointwiseFunction = pointwise({
  name: "div",
  expr: ([a, b]) => apply("div", a, b),
  gradient: ({ g, inputs: [, b], out, needs }) => [
    needs[0] ? g.div(b) : null,
    needs[1] ? g.mul(out).div(b).neg() : null,
  ],
  reference: (a, b) => a / b,
  domain: [[-2, 2], [0.5, 3]],
  dtypes: NUMBERS,
  cost: 3,
});

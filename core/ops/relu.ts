import { FLOATS } from "../dtype.ts";
import { apply, constant } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { where } from "./where.ts";

/** max(x, 0). */
export const relu: PointwiseFunction = pointwise({
  name: "relu",
  expr: ([x]) => apply("max", x, constant("f32", 0)),
  gradient: ({ g, inputs: [x] }) => [where(x.gt(0), g, 0)],
  reference: (x) => Math.max(x, 0),
  domain: [[-2, 2]],
  dtypes: FLOATS,
});

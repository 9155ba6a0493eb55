import { DTYPES } from "../dtype.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** A copy. */
export const identity: PointwiseFunction = pointwise({
  name: "identity",
  expr: ([x]) => x,
  gradient: ({ g }) => [g],
  reference: (x) => x,
  domain: [[-2, 2]],
  dtypes: DTYPES,
  cost: 0,
});

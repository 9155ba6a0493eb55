import { DTYPES } from "../dtype.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/**
 * The same value, computed where it is recorded rather than inside whoever reads it: so that a sum of
 * many parts holds one running total, not all parts until the last.
 */
export const stored: PointwiseFunction = pointwise({
  name: "stored",
  expr: ([x]) => x,
  gradient: ({ g }) => [g],
  reference: (x) => x,
  domain: [[-2, 2]],
  dtypes: DTYPES,
  // Above what any kernel takes in.
  cost: 1e6,
});

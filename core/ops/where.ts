import { DTYPES } from "../dtype.ts";
import { select } from "../expr.ts";
import { asTensors, pointwise, type PointwiseFunction, scalar } from "../op.ts";
import type { Tensor } from "../tensor.ts";

const whereOp: PointwiseFunction = pointwise({
  name: "where",
  expr: ([condition, a, b]) => select(condition, a, b),
  gradient: ({ g, inputs: [condition], needs }) => [
    null,
    needs[1] ? where(condition, g, 0) : null,
    needs[2] ? where(condition, 0, g) : null,
  ],
  reference: (condition, a, b) => condition ? a : b,
  domain: [[0, 2], [-2, 2], [-2, 2]],
  dtypes: DTYPES,
});

/**
 * `a` where `condition` (bool) holds, else `b`. Shapes broadcast.
 *
 * Throws a `TypeError` where the condition is not bool or `a` and `b` differ in dtype.
 */
export function where(condition: Tensor, a: Tensor | number, b: Tensor | number): Tensor {
  if (condition.dtype !== "bool") {
    throw new TypeError(`where: needs a bool condition, got ${condition.dtype}`);
  }
  // Two numbers are floats: the condition's dtype is no model for them.
  const [x, y] = typeof a === "number" && typeof b === "number"
    ? [scalar(a, "f32", condition.device), scalar(b, "f32", condition.device)]
    : asTensors("where", [a, b]);
  return whereOp(condition, x, y);
}

/** The op itself. */
export const whereFunction: PointwiseFunction = whereOp;

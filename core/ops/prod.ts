import type { ReduceOp } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { keptShape, recordReduction, reduction } from "./reduce.ts";
import { reshape } from "./reshape.ts";

/** The op. Its gradient divides by the factors, which therefore must not be 0. */
export const prodOp: ReduceOp = reduction(
  "prod",
  "prod",
  ({ g, inputs: [x], out, attrs }) => {
    const kept = keptShape(x, attrs.axes as number[]);
    return [reshape(g.mul(out), kept).div(x)];
  },
  [{ inputs: [{ shape: [3, 5], low: 0.5, high: 1.5 }], call: (x) => x.prod(1) }],
);

/** Product along `axes` (default: all). */
export function prod(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  return recordReduction(prodOp, x, axes, keepDims);
}

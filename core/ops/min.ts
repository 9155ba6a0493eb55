import type { ReduceOp } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { keptShape, recordReduction, reduction } from "./reduce.ts";
import { reshape } from "./reshape.ts";

/** The op. Equal extremes share the gradient evenly. */
export const minOp: ReduceOp = reduction(
  "min",
  "min",
  ({ g, inputs: [x], out, attrs }) => {
    const axes = attrs.axes as number[];
    const kept = keptShape(x, axes);
    const hit = x.eq(reshape(out, kept)).to(x.dtype);
    const share = reshape(g, kept).div(hit.sum(axes, true));
    return [hit.mul(share)];
  },
  [
    { name: "all", inputs: [{ shape: [3, 5] }], call: (x) => x.min() },
    { name: "rows", inputs: [{ shape: [3, 40] }], call: (x) => x.min(1) },
    { name: "columns", inputs: [{ shape: [40, 3] }], call: (x) => x.min(0) },
  ],
);

/** The extreme along `axes` (default: all). */
export function min(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  return recordReduction(minOp, x, axes, keepDims);
}

import type { ReduceOp } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { keptShape, recordReduction, reduction } from "./reduce.ts";
import { reshape } from "./reshape.ts";

/** The op. Equal extremes share the gradient evenly. */
export const maxOp: ReduceOp = reduction(
  "max",
  "max",
  ({ g, inputs: [x], out, attrs }) => {
    const axes = attrs.axes as number[];
    const kept = keptShape(x, axes);
    const hit = x.eq(reshape(out, kept)).to(x.dtype);
    const share = reshape(g, kept).div(hit.sum(axes, true));
    return [hit.mul(share)];
  },
  [
    { name: "all", inputs: [{ shape: [3, 5] }], call: (x) => x.max() },
    { name: "rows", inputs: [{ shape: [3, 40] }], call: (x) => x.max(1) },
    { name: "columns", inputs: [{ shape: [40, 3] }], call: (x) => x.max(0) },
  ],
);

/** The extreme along `axes` (default: all). */
export function max(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  return recordReduction(maxOp, x, axes, keepDims);
}

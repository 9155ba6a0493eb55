import type { ReduceOp } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { expand } from "./expand.ts";
import { keptShape, recordReduction, reduction } from "./reduce.ts";
import { reshape } from "./reshape.ts";

/** The op. */
export const sumOp: ReduceOp = reduction(
  "sum",
  "sum",
  ({ g, inputs: [x], attrs }) => [
    expand(reshape(g, keptShape(x, attrs.axes as number[])), x.shape),
  ],
  [
    { name: "all", inputs: [{ shape: [3, 5] }], call: (x) => x.sum() },
    { name: "rows", inputs: [{ shape: [3, 40] }], call: (x) => x.sum(1) },
    { name: "columns", inputs: [{ shape: [40, 3] }], call: (x) => x.sum(0, true) },
    { name: "outer and inner", inputs: [{ shape: [3, 4, 5] }], call: (x) => x.sum([0, 2]) },
    { name: "of a product", inputs: [{ shape: [3, 5] }], call: (x) => x.mul(x).sum(1) },
  ],
);

/** Sum along `axes` (default: all). */
export function sum(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  return recordReduction(sumOp, x, axes, keepDims);
}

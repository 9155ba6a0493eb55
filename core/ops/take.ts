import { record } from "../graph.ts";
import type { FetchOp } from "../op.ts";
import { axisOf, sizeOf } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { checkIndices, fetchOp } from "./fetch.ts";
import { scatterRows } from "./scatter_rows/mod.ts";

/** The op. */
export const takeOp: FetchOp = fetchOp(
  "take",
  "take",
  ({ g, inputs: [x, indices], attrs }) => {
    const axis = attrs.axis as number;
    const before = x.shape.slice(0, axis);
    const after = x.shape.slice(axis + 1);
    const rest = sizeOf(before) * sizeOf(after);
    // Indices first: [N, before · after], one row for each index.
    const rank = g.rank;
    const order = [
      ...indices.shape.map((_, d) => axis + d),
      ...before.map((_, d) => d),
      ...after.map((_, d) => rank - after.length + d),
    ];
    const rows = g.permute(order).reshape(indices.size, rest);
    const summed = scatterRows(indices.reshape(indices.size), rows, x.shape[axis]); // [n, rest]
    const back = summed.reshape([x.shape[axis], ...before, ...after]);
    const home = x.shape.map((_, d) => d < axis ? d + 1 : d === axis ? 0 : d);
    return [back.permute(home), null];
  },
  [
    {
      name: "rows",
      inputs: [{ shape: [5, 3] }, { shape: [2, 4], dtype: "i32", low: 0, high: 5 }],
      call: (x, i) => x.take(i),
    },
    {
      name: "columns",
      inputs: [{ shape: [2, 5, 3] }, { shape: [4], dtype: "i32", low: 0, high: 5 }],
      call: (x, i) => x.take(i, 1),
    },
  ],
);

/**
 * Slices of `x` at `indices` along `axis`, as NumPy's `take`: the shape is x's before the axis, then
 * the indices', then x's after it. An embedding is `take` along axis 0.
 */
export function take(x: Tensor, indices: Tensor, axis = 0): Tensor {
  const dim = axisOf("take", axis, x.shape);
  checkIndices("take", indices, x.shape[dim]);
  const shape = [...x.shape.slice(0, dim), ...indices.shape, ...x.shape.slice(dim + 1)];
  return new Tensor(
    record(takeOp, [x.node, indices.node], { shape, dtype: x.dtype }, { axis: dim }),
  );
}

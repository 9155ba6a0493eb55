import { record } from "../graph.ts";
import type { FetchOp } from "../op.ts";
import { axisOf, show } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { checkIndices, fetchOp } from "./fetch.ts";
import { scatterAdd } from "./scatter_add.ts";

/** The op. */
export const gatherOp: FetchOp = fetchOp(
  "gather",
  "gather",
  ({ g, inputs: [x, indices], attrs }) => {
    const axis = attrs.axis as number;
    return [scatterAdd(g, axis, indices, x.shape[axis]), null];
  },
  [
    {
      inputs: [{ shape: [3, 5] }, { shape: [3, 2], dtype: "i32", low: 0, high: 5 }],
      call: (x, i) => x.gather(1, i),
    },
    {
      name: "along the first",
      inputs: [{ shape: [4, 3] }, { shape: [6, 3], dtype: "i32", low: 0, high: 4 }],
      call: (x, i) => x.gather(0, i),
    },
  ],
);

/**
 * Along `axis`, at each place the element that `indices` names there: out[i][j] = x[i][indices[i][j]]
 * for axis 1. The other sizes of `indices` must be x's.
 */
export function gather(x: Tensor, axis: number, indices: Tensor): Tensor {
  const dim = axisOf("gather", axis, x.shape);
  const fits = indices.rank === x.rank &&
    indices.shape.every((n, d) => d === dim || n === x.shape[d]);
  if (!fits) {
    throw new RangeError(
      `gather: needs indices shaped as ${show(x.shape)} but for axis ${dim}, got ${
        show(indices.shape)
      }`,
    );
  }
  checkIndices("gather", indices, x.shape[dim]);
  return new Tensor(
    record(gatherOp, [x.node, indices.node], { shape: indices.shape, dtype: x.dtype }, {
      axis: dim,
    }),
  );
}

import type { CallKernel, Operand } from "../../kernel.ts";
import { kernel, type KernelOp, recordKernel } from "../../op.ts";
import { show } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import { isContiguous } from "../../view.ts";
import { iota } from "../iota.ts";
import { where } from "../where.ts";
import { scatterRowsWasm } from "./wasm.ts";
import { scatterRowsWgsl } from "./wgsl.ts";

/** The op. Its gradient reads the rows back. */
export const scatterRowsOp: KernelOp = kernel({
  code: {
    name: "scatterRows",
    accepts: (_index: number, o: Operand) => isContiguous({ ...o, bounds: [] }),
    epilogue: false,
    wgsl: (call: CallKernel, target) => scatterRowsWgsl(call, target),
    wasm: (call: CallKernel, target) => scatterRowsWasm(call, target),
  },
  gradient: ({ g, inputs: [index] }) => [null, g.take(index)],
  samples: [
    {
      inputs: [{ shape: [9], dtype: "i32", low: 0, high: 5 }, { shape: [9, 6] }],
      call: (index, source) => scatterRows(index, source, 5),
      reference: (index, source) => byComparison(index, source, 5),
    },
    {
      name: "one column, many rows",
      inputs: [{ shape: [40], dtype: "i32", low: 0, high: 70 }, { shape: [40, 1] }],
      call: (index, source) => scatterRows(index, source, 70),
      reference: (index, source) => byComparison(index, source, 70),
    },
  ],
});

/**
 * Adds row n of `source` [N, D] to row `index[n]` of zeros [rows, D]: the gradient of an embedding.
 * Indices outside [0, rows) are skipped; the order of additions is fixed.
 */
export function scatterRows(index: Tensor, source: Tensor, rows: number): Tensor {
  if (index.rank !== 1 || source.rank !== 2 || index.shape[0] !== source.shape[0]) {
    throw new RangeError(
      `scatterRows: needs an index [N] and rows [N, D], got ${show(index.shape)} and ${
        show(source.shape)
      }`,
    );
  }
  if (source.dtype !== "f32" || index.dtype !== "i32") {
    throw new TypeError(`scatterRows: needs i32 and f32, got ${index.dtype} and ${source.dtype}`);
  }
  const shape = [rows, source.shape[1]];
  return recordKernel(scatterRowsOp, [index, source], [{ shape, dtype: source.dtype }], {})[0];
}

/** The composed truth: each row sums the sources that name it. */
function byComparison(index: Tensor, source: Tensor, rows: number): Tensor {
  const [n, d] = source.shape;
  const hit = index.reshape(1, n, 1).eq(iota([rows, n, d], 0, "i32", index.device));
  return where(hit, source, 0).sum(1);
}

import { bytesOf, type DType, DTYPES, registerOf } from "../dtype.ts";
import { cast as castExpr } from "../expr.ts";
import { defineOp, type PointwiseOp, recordPointwise } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/** The conversions, one op for each target. */
const ops = new Map<DType, PointwiseOp>();

function opFor(dtype: DType): PointwiseOp {
  let op = ops.get(dtype);
  if (!op) {
    op = defineOp<PointwiseOp>({
      kind: "pointwise",
      name: `to ${dtype}`,
      expr: ([x]) => castExpr(x, registerOf(dtype)),
      gradient: ({ g, inputs: [x] }) => [cast(g, x.dtype)],
      // Rounding happens where a value is stored: never inside another kernel.
      cost: bytesOf(dtype) === 2 ? 1e6 : 1,
      reference: (x) => x,
      domain: [[-2, 2]],
      dtypes: DTYPES,
      output: dtype,
      samples: [],
    });
    ops.set(dtype, op);
  }
  return op;
}

/**
 * Converts to `dtype`. Floats to integers truncate towards zero and saturate, NaN gives 0; to bool is
 * `≠ 0`; to f16 and bf16 rounds to nearest even. The gradient is converted back.
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (!DTYPES.includes(dtype)) {
    throw new TypeError(`to: needs one of ${DTYPES.join(", ")}, got ${dtype}`);
  }
  return x.dtype === dtype ? x : recordPointwise(opFor(dtype), [x], {});
}

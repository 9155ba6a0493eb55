import type { Register } from "../dtype.ts";
import { bitcast as bitcastExpr } from "../expr.ts";
import { defineOp, type PointwiseOp, recordPointwise } from "../op.ts";
import type { Tensor } from "../tensor.ts";

const opFor = (register: Register): PointwiseOp =>
  defineOp<PointwiseOp>({
    kind: "pointwise",
    name: `bitcast ${register}`,
    expr: ([x]) => bitcastExpr(x, register),
    gradient: null,
    cost: 0,
    reference: (x) => x,
    domain: [[-2, 2]],
    dtypes: ["f32", "i32", "u32"],
    output: register,
    samples: [],
  });
const ops = { f32: opFor("f32"), i32: opFor("i32"), u32: opFor("u32") };

/** The same 32 bits as another type. No gradient. */
export function bitcast(x: Tensor, dtype: "f32" | "i32" | "u32"): Tensor {
  return x.dtype === dtype ? x : recordPointwise(ops[dtype], [x], {});
}

import { record } from "../graph.ts";
import { defineOp, type Gradient, type ReduceOp, type Sample } from "../op.ts";
import { axesOf } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { reshape } from "./reshape.ts";

/** Makes a reduction op. */
export function reduction(
  name: string,
  combine: ReduceOp["combine"],
  gradient: Gradient,
  samples: readonly Sample[],
): ReduceOp {
  return defineOp<ReduceOp>({ kind: "reduce", name, combine, gradient, samples });
}

/** Records a reduction along `axes`. */
export function recordReduction(
  op: ReduceOp,
  x: Tensor,
  axes: number | readonly number[] | undefined,
  keepDims: boolean,
): Tensor {
  const dims = axesOf(op.name, axes, x.shape);
  if (x.dtype === "bool") {
    throw new TypeError(`${op.name}: needs numbers, got bool; use .to("i32")`);
  }
  if (dims.length === 0) return x;
  const shape = x.shape.filter((_, d) => !dims.includes(d));
  const reduced = new Tensor(
    record(op, [x.node], { shape, dtype: x.dtype }, { axes: dims }),
  );
  return keepDims ? reshape(reduced, keptShape(x, dims)) : reduced;
}

/** The shape of `x` with size 1 along `axes`. */
export function keptShape(x: Tensor, axes: readonly number[]): number[] {
  return x.shape.map((n, d) => axes.includes(d) ? 1 : n);
}

/**
 * The engine: tensors that are recipes until read, automatic differentiation, and the devices that run
 * them.
 *
 * @example
 * ```ts
 * import { init, tensor, Variable } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const w = new Variable(tensor([1, -1]), { requiresGrad: true });
 * const loss = w.mul(tensor([3, 2])).sum().square();
 * loss.backward();
 * console.log(await w.grad!.data()); // Float32Array [6, 4]
 * ```
 *
 * @module
 */

export * from "./autograd.ts";
export * from "./create.ts";
export {
  currentDevice,
  Device,
  type DeviceName,
  flush,
  init,
  type InitOptions,
  useDevice,
} from "./device.ts";
export { bytesOf, type DType, DTYPES, isFloat, type Register } from "./dtype.ts";
export * from "./generator.ts";
export {
  type Gradient,
  type GradientContext,
  pointwise,
  type PointwiseDefinition,
  type PointwiseFunction,
} from "./op.ts";
export type { Attr, Attrs } from "./graph.ts";
export type { BackendCounters } from "./kernel.ts";
export * as expr from "./expr.ts";
export type {
  Acc as AccExpr,
  Apply as ApplyExpr,
  Binary,
  Bound as BoundExpr,
  Const as ConstExpr,
  Expr,
  Fetch as FetchExpr,
  Index as IndexExpr,
  Load as LoadExpr,
  Scalar as ScalarExpr,
  Unary,
} from "./expr.ts";
export { attention, type AttentionOptions, composedAttention } from "./ops/attention/mod.ts";
export { concatenate } from "./ops/concatenate.ts";
export { countNonfinite } from "./ops/count_nonfinite.ts";
export { crossEntropy, type CrossEntropyOptions } from "./ops/cross_entropy.ts";
export { dropout } from "./ops/dropout.ts";
export { einsum } from "./ops/einsum.ts";
export { embedding } from "./ops/embedding.ts";
export { layerNorm } from "./ops/layer_norm.ts";
export { linearCrossEntropy, type LinearCrossEntropyOptions } from "./ops/linear_cross_entropy.ts";
export { rmsNorm } from "./ops/rms_norm.ts";
export { rope } from "./ops/rope.ts";
export { scatterAdd } from "./ops/scatter_add.ts";
export { stack } from "./ops/stack.ts";
export { swiglu } from "./ops/swiglu.ts";
export { where } from "./ops/where.ts";
export type { PlanReport } from "./plan.ts";
export * from "./quantized.ts";
export * from "./random.ts";
export * from "./safetensors.ts";
export type { Shape } from "./shape.ts";
export { type Axes, type Data, type Operand, read, type ReadResult, Tensor } from "./tensor.ts";
export { Variable, type VariableOptions } from "./variable.ts";

/**
 * Optimizers, learning-rate schedules, gradient clipping, training checkpoints.
 *
 * @module
 */

export * from "./adam.ts";
export * from "./checkpoint.ts";
export * from "./clip.ts";
export {
  Optimizer,
  type OptimizerCounters,
  type OptimizerGroup,
  type OptimizerState,
  type ParameterGroup,
  type StateTensor,
  type StepOptions,
  type UpdateContext,
} from "./optimizer.ts";
export * from "./schedules.ts";
export * from "./sgd.ts";

/**
 * Hyper-parameter search: a space, a sampler that says where to look next, trials that are asked for
 * and told, a pruner that stops the hopeless ones, a study that is a file, and what it found.
 *
 * @example
 * ```ts
 * import { choice, importance, integer, logUniform, MedianPruner, Study } from "@graft/ml/tune";
 *
 * const study = new Study({
 *   space: {
 *     rate: logUniform(1e-5, 1e-1),
 *     rank: integer(1, 64, { log: true }),
 *     targets: choice([["q_proj"], ["q_proj", "v_proj"]]),
 *   },
 *   pruner: new MedianPruner({ warmup: 2 }),
 *   seed: 1,
 *   // file: "study.jsonl" would keep it, and go on with it after a kill
 * });
 *
 * // What a real function does: train with `params`, report the loss on held-out text as it goes.
 * await study.run((trial) => {
 *   const { rate, rank, targets } = trial.params;
 *   let loss = 0;
 *   for (let step = 0; step < 5; step++) {
 *     loss = Math.log10(rate / 1e-3) ** 2 + 1 / rank + 1 / targets.length + 1 / (step + 1);
 *     trial.report(step, loss);
 *     if (trial.shouldPrune()) return { state: "pruned" };
 *   }
 *   return loss;
 * }, { trials: 40 });
 *
 * console.log(JSON.stringify(study.bestConfig())); // for a file
 * console.log(importance(study)[0].name); // rate
 * ```
 *
 * @module
 */

export { type Importance, importance, type ImportanceOptions } from "./importance.ts";
export {
  type Choice,
  choice,
  type Conditional,
  conditional,
  type Definition,
  type Integer,
  integer,
  type IntegerOptions,
  type LogUniform,
  logUniform,
  type Parameter,
  type Params,
  type Plain,
  type PlainValue,
  type Uniform,
  uniform,
  type Value,
  type ValueOf,
} from "./parameters.ts";
export * from "./plots.ts";
export { type HalvingOptions, HalvingPruner } from "./pruners/halving.ts";
export { type MedianOptions, MedianPruner } from "./pruners/median.ts";
export { Random } from "./random.ts";
export {
  type Direction,
  type Pruner,
  type PrunerContext,
  type Report,
  type Sampler,
  type SamplerContext,
  type TrialRecord,
  type TrialState,
} from "./records.ts";
export { type GridOptions, GridSampler } from "./samplers/grid.ts";
export { RandomSampler } from "./samplers/random.ts";
export { type TpeOptions, TpeSampler } from "./samplers/tpe.ts";
export { type Dimension, Space, type Values } from "./space.ts";
export {
  type Outcome,
  type RunOptions,
  type RunResult,
  Study,
  type StudyOptions,
} from "./study.ts";
export { Trial } from "./trial.ts";

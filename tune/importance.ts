/**
 * Which parameters matter.
 *
 * @module
 */

import { type Column, treeImportance } from "./forest.ts";
import { type Definition, keyOf, type Value } from "./parameters.ts";
import { Random } from "./random.ts";
import type { Study } from "./study.ts";
import { type Dimension, exists } from "./space.ts";

/** Options of `importance`. */
export interface ImportanceOptions {
  /** The number of trees. Default 64. */
  readonly trees?: number;
  /** The seed of the forest. Default 0. */
  readonly seed?: number;
}

/** How much a parameter matters. */
export interface Importance {
  /** The parameter. */
  readonly name: string;
  /** The part of the variance that it explains by itself, in [0, 1]. */
  readonly importance: number;
}

/**
 * The part of the value's variance over the space that each parameter explains by itself, the greatest
 * first: functional ANOVA on a random forest (Hutter, Hoos and Leyton-Brown 2014, "An Efficient
 * Approach for Assessing Hyperparameter Importance"). What is missing to 1 is what parameters do
 * together.
 *
 * It looks at complete trials alone. Numbers are taken on the scale of their parameter. Where a
 * parameter does not exist, a number stands in the middle of its range, as in the paper, and a choice
 * has a value of its own for that. The measure speaks of the whole space, not of the best corner of it,
 * and of what the trials saw: a sampler that stayed in one corner tells little of the rest. All are 0
 * where every trial gave the same value.
 *
 * @throws Error if fewer than 4 trials are complete.
 * @throws RangeError if the number of trees is not a whole number of at least 1.
 *
 * @example
 * ```ts
 * import { importance, RandomSampler, Study, uniform } from "@graft/ml/tune";
 *
 * const space = { x: uniform(0, 1), y: uniform(0, 1) };
 * const study = new Study({ space, sampler: new RandomSampler() });
 * await study.run(({ params: { x, y } }) => 10 * x + y, { trials: 40 });
 * console.log(importance(study)[0].name); // x
 * ```
 */
export function importance<S extends Definition>(
  study: Study<S>,
  { trees = 64, seed = 0 }: ImportanceOptions = {},
): Importance[] {
  if (!(Number.isSafeInteger(trees) && trees >= 1)) {
    throw new RangeError(`importance: trees must be a whole number of at least 1, got ${trees}`);
  }
  const complete = study.trials.filter((t) => t.state === "complete");
  if (complete.length < 4) {
    throw new Error(`importance: needs at least 4 complete trials, got ${complete.length}`);
  }
  const dimensions = study.space.dimensions;
  const columns = dimensions.map(columnOf);
  const rows = complete.map(({ params }) => {
    const values = params as { readonly [name: string]: Value };
    return dimensions.map((d) => encode(d, exists(d, values) ? values[d.name] : undefined));
  });
  // Values of 1e200 squared must not become infinite; the measure does not change with scale.
  const largest = Math.max(...complete.map((t) => Math.abs(t.value!)), Number.MIN_VALUE);
  const scaled = complete.map((t) => t.value! / largest);
  const mean = scaled.reduce((a, b) => a + b, 0) / scaled.length;
  const targets = scaled.map((value) => value - mean);

  const sums = dimensions.map(() => 0);
  let grown = 0;
  for (let tree = 0; tree < trees; tree++) {
    const random = new Random(seed, tree);
    const sample = Array.from(rows, () => random.integer(rows.length));
    const parts = treeImportance(columns, rows, targets, sample, random);
    if (!parts) continue;
    grown++;
    parts.forEach((part, j) => sums[j] += part);
  }
  return dimensions
    .map(({ name }, j) => ({ name, importance: grown === 0 ? 0 : sums[j] / grown }))
    .sort((a, b) => b.importance - a.importance);
}

function columnOf({ parameter, condition }: Dimension): Column {
  if (parameter.kind !== "choice") return {};
  return { categories: parameter.values.length + (condition ? 1 : 0) };
}

/** A number in [0, 1], or the index of a choice. */
function encode({ parameter }: Dimension, value: Value | undefined): number {
  if (parameter.kind === "choice") {
    if (value === undefined) return parameter.values.length;
    const key = keyOf(value);
    return parameter.values.findIndex((v) => keyOf(v) === key);
  }
  const { low, high } = parameter;
  if (value === undefined || low === high) return 0.5;
  const log = parameter.kind === "logUniform" || (parameter.kind === "integer" && parameter.log);
  const x = value as number;
  return log ? Math.log(x / low) / Math.log(high / low) : (x - low) / (high - low);
}

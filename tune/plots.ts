/**
 * What the usual plots of a study show, as plain arrays; drawing is left to others.
 *
 * @module
 */

import { type Definition, keyOf, type Value } from "./parameters.ts";
import type { Study } from "./study.ts";
import type { Dimension } from "./space.ts";

/** One point of the history. */
export interface HistoryPoint {
  /** The trial's number. */
  readonly number: number;
  /** Its value. */
  readonly value: number;
  /** The best value so far, this one included. */
  readonly best: number;
}

/** The values of the complete trials and the best so far, by the trials' numbers. */
export function history<S extends Definition>(study: Study<S>): HistoryPoint[] {
  const minimize = study.direction === "minimize";
  let best = minimize ? Infinity : -Infinity;
  return study.trials.filter((t) => t.state === "complete").map(({ number, value }) => {
    best = minimize ? Math.min(best, value!) : Math.max(best, value!);
    return { number, value: value!, best };
  });
}

/** An axis of a plot: one parameter. */
export interface Axis {
  /** The parameter. */
  readonly name: string;
  /** What the axis is. */
  readonly scale: "linear" | "log" | "category";
  /** The bounds of a number, undefined for a category. */
  readonly range?: readonly [low: number, high: number];
  /** The values of a choice, in order, undefined for a number. */
  readonly categories?: readonly Value[];
}

/** A slice: the values of the study along one parameter. */
export interface Slice {
  /** The parameter. */
  readonly axis: Axis;
  /** The complete trials in which it existed; `x` is a number, or the index of a category. */
  readonly points: readonly { readonly number: number; readonly x: number; readonly y: number }[];
}

/**
 * One slice for each parameter: the values of complete trials against it.
 *
 * @param names the parameters wanted. Default all, in the space's order.
 * @throws RangeError if a name is not in the space.
 */
export function slices<S extends Definition>(
  study: Study<S>,
  names: readonly (keyof S & string)[] = Object.keys(study.space.definition),
): Slice[] {
  return names.map((name) => {
    const axis = axisOf(study, name);
    const points = study.trials.flatMap(({ number, params, state, value }) => {
      const x = place(axis, (params as { readonly [name: string]: Value })[name]);
      return state === "complete" && x !== null ? [{ number, x, y: value! }] : [];
    });
    return { axis, points };
  });
}

/** Parallel coordinates: each trial as a line across all parameters. */
export interface ParallelCoordinates {
  /** The parameters, in the space's order. */
  readonly axes: readonly Axis[];
  /** The complete trials: a number, or the index of a category, or null where it did not exist. */
  readonly lines: readonly {
    readonly number: number;
    readonly places: readonly (number | null)[];
    readonly value: number;
  }[];
}

/** The complete trials as lines across all parameters. */
export function parallelCoordinates<S extends Definition>(study: Study<S>): ParallelCoordinates {
  const axes = Object.keys(study.space.definition).map((name) => axisOf(study, name));
  const lines = study.trials.filter((t) => t.state === "complete").map((trial) => {
    const params = trial.params as { readonly [name: string]: Value };
    const places = axes.map((axis) => place(axis, params[axis.name]));
    return { number: trial.number, places, value: trial.value! };
  });
  return { axes, lines };
}

function axisOf<S extends Definition>(study: Study<S>, name: string): Axis {
  const dimension: Dimension | undefined = study.space.get(name);
  if (!dimension) {
    const names = Object.keys(study.space.definition).join(", ");
    throw new RangeError(`slices: ${name} is not in the space (${names})`);
  }
  const { parameter } = dimension;
  if (parameter.kind === "choice") {
    return { name, scale: "category", categories: parameter.values };
  }
  const log = parameter.kind === "logUniform" || (parameter.kind === "integer" && parameter.log);
  return { name, scale: log ? "log" : "linear", range: [parameter.low, parameter.high] };
}

function place({ categories }: Axis, value: Value | undefined): number | null {
  if (value === undefined) return null;
  if (!categories) return value as number;
  const key = keyOf(value);
  return categories.findIndex((category) => keyOf(category) === key);
}

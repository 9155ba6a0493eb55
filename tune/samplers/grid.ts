/**
 * The grid sampler.
 *
 * @module
 */

import { keyOf, type Value } from "../parameters.ts";
import { Random } from "../random.ts";
import type { Sampler, SamplerContext } from "../records.ts";
import { contains, countOf, type Dimension, exists, type Space, type Values } from "../space.ts";
import { clamp } from "./random.ts";

/** Options of `GridSampler`. */
export interface GridOptions {
  /**
   * How many values of a number the grid has, or which, for each parameter by name. A choice and a
   * parameter that is not named have all their values; a number between two bounds must be named.
   */
  readonly points?: { readonly [name: string]: number | readonly Value[] };
  /** A seed to shuffle the grid with. Default: the grid is walked in order, the last name fastest. */
  readonly shuffle?: number;
}

/** A grid and how far one study is in it. */
interface Walk {
  readonly points: readonly Values[];
  /** The points that its trials have. */
  readonly used: Set<string>;
  /** How many trials have been read. */
  read: number;
  /** Every point before this one is used. */
  next: number;
}

/** A grid larger than this is refused. */
const LARGEST = 1_000_000;

/**
 * Tries every point of a grid once, whatever becomes of it, also where trials run in parallel. After
 * the last point `study.ask()` gives undefined and `study.run` ends.
 *
 * `points: { x: 3 }` is three values at even distance, bounds included, on the scale of the parameter
 * (its logarithm, where it has one); whole numbers are rounded, and one that comes twice is left out.
 * A parameter with a condition multiplies the grid only where it exists.
 *
 * `study.ask()` throws a `RangeError` where `points` names a parameter that is not in the space, a
 * value that it cannot have or a count below 1, does not name a number between two bounds, or the grid
 * has more than a million points.
 *
 * @example
 * ```ts
 * import { choice, GridSampler, logUniform, Study } from "@graft/ml/tune";
 *
 * const study = new Study({
 *   space: { rate: logUniform(1e-4, 1e-2), rank: choice([4, 8]) },
 *   sampler: new GridSampler({ points: { rate: 3 } }),
 * });
 * const { ended } = await study.run(({ params }) => Math.abs(params.rate - 1e-3) / params.rank);
 * console.log(ended, study.trials.length); // exhausted 6
 * ```
 */
export class GridSampler implements Sampler {
  /** The sampler's name. */
  readonly name = "grid";
  /** Whether it has a last point. */
  readonly ends = true;
  readonly #options: GridOptions;
  /** Where each study is, by its space. */
  readonly #walks = new WeakMap<Space, Walk>();

  /** A grid. */
  constructor(options: GridOptions = {}) {
    this.#options = options;
  }

  /** The first point that no trial had yet; undefined where all are used. */
  suggest({ space, trials }: SamplerContext): Values | undefined {
    let walk = this.#walks.get(space);
    if (!walk) {
      walk = { points: enumerate(space, this.#options), used: new Set(), read: 0, next: 0 };
      this.#walks.set(space, walk);
    }
    const { points, used } = walk;
    for (; walk.read < trials.length; walk.read++) used.add(keyOf(trials[walk.read].params));
    while (walk.next < points.length && used.has(keyOf(points[walk.next]))) walk.next++;
    return points[walk.next];
  }
}

function enumerate(space: Space, { points = {}, shuffle }: GridOptions): readonly Values[] {
  for (const name of Object.keys(points)) {
    if (!space.get(name)) {
      const names = Object.keys(space.definition).join(", ");
      throw new RangeError(`grid: points names ${name}, which is not in the space (${names})`);
    }
  }
  let grid: Record<string, Value>[] = [{}];
  for (const d of space.dimensions) {
    const values = valuesOf(d, Object.hasOwn(points, d.name) ? points[d.name] : undefined);
    const next: Record<string, Value>[] = [];
    for (const point of grid) {
      if (!exists(d, point)) next.push(point);
      else for (const value of values) next.push({ ...point, [d.name]: value });
      if (next.length > LARGEST) {
        throw new RangeError(`grid: has more than ${LARGEST} points; give fewer with "points"`);
      }
    }
    grid = next;
  }
  if (shuffle !== undefined) {
    const random = new Random(shuffle);
    for (let i = grid.length - 1; i > 0; i--) {
      const j = random.integer(i + 1);
      [grid[i], grid[j]] = [grid[j], grid[i]];
    }
  }
  return grid.map((point) => space.fill((d) => point[d.name]));
}

function valuesOf({ name, parameter }: Dimension, points?: number | readonly Value[]): Value[] {
  if (typeof points === "object") {
    const wrong = points.find((value) => !contains(parameter, value));
    if (wrong !== undefined) {
      throw new RangeError(`grid: parameter ${name} cannot be ${JSON.stringify(wrong)}`);
    }
    if (points.length === 0) throw new RangeError(`grid: parameter ${name} has an empty list`);
    return [...new Map(points.map((value) => [keyOf(value), value])).values()];
  }
  if (points !== undefined && !(Number.isInteger(points) && points >= 1)) {
    throw new RangeError(`grid: parameter ${name} needs at least 1 point, got ${points}`);
  }
  if (parameter.kind === "choice") {
    if (points === undefined) return [...parameter.values];
    throw new RangeError(`grid: parameter ${name} is a choice: give a list of values, not a count`);
  }
  const { low, high, kind } = parameter;
  if (kind === "integer") {
    const all = countOf(parameter);
    const count = Math.min(points ?? all, all);
    if (count > LARGEST) {
      throw new RangeError(`grid: has more than ${LARGEST} points; give fewer for ${name}`);
    }
    if (count === all) return Array.from({ length: all }, (_, i) => low + i * parameter.step);
    const last = low + (all - 1) * parameter.step;
    const round = (x: number) => low + Math.round((x - low) / parameter.step) * parameter.step;
    return [...new Set(between(low, last, count, parameter.log).map(round))];
  }
  if (low === high) return [low];
  if (points === undefined) {
    throw new RangeError(
      `grid: parameter ${name} is a number between two bounds: say how many, as { ${name}: 5 }`,
    );
  }
  return [...new Set(between(low, high, points, kind === "logUniform"))];
}

/** `count` values at even distance, both ends included; the middle, where there is but one. */
function between(low: number, high: number, count: number, log: boolean): number[] {
  const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
  return Array.from({ length: count }, (_, i) => {
    if (count > 1 && i === 0) return low;
    if (count > 1 && i === count - 1) return high;
    const x = count === 1 ? (a + b) / 2 : a + i * (b - a) / (count - 1);
    return clamp(log ? Math.exp(x) : x, { low, high });
  });
}

/**
 * Parzen estimators: the density of one parameter, from the values that some trials had.
 *
 * @module
 */

import { keyOf, type Plain, type Value } from "../parameters.ts";
import type { Random } from "../random.ts";
import { countOf } from "../space.ts";
import { normalMass } from "./normal.ts";
import { clamp } from "./random.ts";

/** A density of one parameter. */
export interface Estimator {
  /** A value of the parameter. */
  sample(random: Random): Value;
  /**
   * The logarithm of the density at a value: per unit of the parameter for `uniform`, per unit of its
   * logarithm for `logUniform`; of the probability, for `integer` and `choice`.
   */
  logDensity(value: Value): number;
}

/**
 * The density of a parameter from observed values: a mixture of one kernel for each and one for the
 * prior, which weighs 1 (Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", section
 * 4; widths and weights as Optuna 5.0.0 has them, which `tests/parity` holds it against).
 *
 * @param values the observed values, oldest first.
 * @param weights one for each value.
 */
export function parzen(
  parameter: Plain,
  values: readonly Value[],
  weights: readonly number[],
): Estimator {
  if (parameter.kind === "choice") return new ChoiceEstimator(parameter.values, values, weights);
  return new NumberEstimator(parameter, values as readonly number[], weights);
}

/**
 * Weights of `count` trials, oldest first: the newest 25 weigh 1, older ones fall on a line to
 * 1 / count (Bergstra et al. 2013, hyperopt's linear forgetting).
 */
export function forgetting(count: number): number[] {
  const old = count - 25;
  return Array.from({ length: count }, (_, i) => {
    if (i >= old) return 1;
    return old === 1 ? 1 / count : 1 / count + (1 - 1 / count) * i / (old - 1);
  });
}

/** Normal kernels, cut at the bounds. */
class NumberEstimator implements Estimator {
  readonly #parameter: Exclude<Plain, { kind: "choice" }>;
  readonly #log: boolean;
  /** The ends, on the scale of the kernels; half a step beyond the last values of an integer. */
  readonly #low: number;
  readonly #high: number;
  readonly #centers: number[];
  readonly #widths: number[];
  /** Normalised, and the part of a kernel that lies between the ends. */
  readonly #weights: number[];
  readonly #inside: number[];

  constructor(
    parameter: Exclude<Plain, { kind: "choice" }>,
    values: readonly number[],
    weights: readonly number[],
  ) {
    this.#parameter = parameter;
    this.#log = parameter.kind === "logUniform" || (parameter.kind === "integer" && parameter.log);
    let { low, high } = parameter;
    if (parameter.kind === "integer") {
      high = low + (countOf(parameter) - 1) * parameter.step + parameter.step / 2;
      low -= parameter.step / 2;
    }
    this.#low = this.#scale(low);
    this.#high = this.#scale(high);
    this.#centers = [...values.map((v) => this.#scale(v)), (this.#low + this.#high) / 2];
    this.#widths = widths(this.#centers, this.#low, this.#high);
    const total = weights.reduce((a, b) => a + b, 1);
    this.#weights = [...weights, 1].map((w) => w / total);
    this.#inside = this.#centers.map((_, k) => this.#mass(k, this.#low, this.#high));
  }

  #scale(value: number): number {
    return this.#log ? Math.log(value) : value;
  }

  /** The part of kernel k, uncut, between two points. */
  #mass(k: number, from: number, to: number): number {
    const width = this.#widths[k];
    return normalMass((from - this.#centers[k]) / width, (to - this.#centers[k]) / width);
  }

  sample(random: Random): number {
    const parameter = this.#parameter;
    if (!(this.#high > this.#low)) return parameter.low;
    const k = random.weighted(this.#weights);
    // A kernel's centre lies between the ends and its width is at most their distance, so that at
    // least a third of it is inside: drawing again ends soon.
    let x: number;
    do x = this.#centers[k] + this.#widths[k] * random.normal(); while (
      x < this.#low || x > this.#high
    );
    const value = this.#log ? Math.exp(x) : x;
    if (parameter.kind !== "integer") return clamp(value, parameter);
    const { low, step } = parameter;
    const index = Math.round((value - low) / step);
    return low + step * clamp(index, { low: 0, high: countOf(parameter) - 1 });
  }

  logDensity(value: Value): number {
    if (typeof value !== "number" || !(this.#high > this.#low)) return 0;
    const parameter = this.#parameter;
    let sum = 0;
    if (parameter.kind === "integer") {
      const half = parameter.step / 2;
      const from = this.#scale(value - half);
      const to = this.#scale(value + half);
      for (let k = 0; k < this.#centers.length; k++) {
        sum += this.#weights[k] * this.#mass(k, from, to) / this.#inside[k];
      }
    } else {
      const x = this.#scale(value);
      for (let k = 0; k < this.#centers.length; k++) {
        const z = (x - this.#centers[k]) / this.#widths[k];
        const peak = Math.sqrt(2 * Math.PI) * this.#widths[k] * this.#inside[k];
        sum += this.#weights[k] * Math.exp(-z * z / 2) / peak;
      }
    }
    return Math.log(sum);
  }
}

/**
 * The width of each kernel, the last of which is the prior's: the larger distance to its neighbours
 * among the observed values, where the first and the last have but one, and a single one has the ends;
 * at least the range over min(100, kernels + 1), at most the range. The prior's is the range.
 */
function widths(centers: readonly number[], low: number, high: number): number[] {
  const range = high - low;
  const least = range / Math.min(100, centers.length + 1);
  const values = centers.slice(0, -1);
  const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]);
  const alone = values.length === 1;
  const out = new Array<number>(centers.length).fill(range);
  order.forEach((index, place) => {
    const x = values[index];
    const before = values[order[place - 1]] ?? (alone ? low : x);
    const after = values[order[place + 1]] ?? (alone ? high : x);
    out[index] = Math.min(Math.max(x - before, after - x, least), range);
  });
  return out;
}

/** Each observed value adds its weight to its own probability, the prior adds the same to all. */
class ChoiceEstimator implements Estimator {
  readonly #values: readonly Value[];
  readonly #probabilities: number[];
  readonly #index: Map<string, number>;

  constructor(
    all: readonly Value[],
    values: readonly Value[],
    weights: readonly number[],
  ) {
    this.#values = all;
    this.#index = new Map(all.map((value, i) => [keyOf(value), i]));
    const total = weights.reduce((a, b) => a + b, 1);
    const kernels = values.length + 1;
    this.#probabilities = new Array<number>(all.length).fill(1 / total / all.length);
    // A kernel is 1 at its value and 1 / kernels everywhere, made to sum to 1.
    const floor = 1 / kernels;
    const sum = 1 + floor * all.length;
    values.forEach((value, i) => {
      const own = this.#index.get(keyOf(value))!;
      for (let c = 0; c < all.length; c++) {
        this.#probabilities[c] += weights[i] / total * (floor + (c === own ? 1 : 0)) / sum;
      }
    });
  }

  sample(random: Random): Value {
    return this.#values[random.weighted(this.#probabilities)];
  }

  logDensity(value: Value): number {
    return Math.log(this.#probabilities[this.#index.get(keyOf(value))!]);
  }
}

/**
 * The tree-structured Parzen estimator.
 *
 * @module
 */

import type { Value } from "../parameters.ts";
import type { Random } from "../random.ts";
import type { Direction, Sampler, SamplerContext, TrialRecord } from "../records.ts";
import type { Dimension, Values } from "../space.ts";
import { forgetting, parzen } from "./parzen.ts";
import { draw } from "./random.ts";

/** Options of `TpeSampler`. */
export interface TpeOptions {
  /** How many trials are random before the estimators begin. Default 10. */
  readonly startup?: number;
  /** How many candidates are drawn for each parameter. Default 24. */
  readonly candidates?: number;
  /** How many of n trials are the good ones. Default min(⌈0.1 n⌉, 25). */
  readonly gamma?: (n: number) => number;
}

/**
 * The tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for Hyper-Parameter
 * Optimization", section 4; Bergstra et al. 2013, "Making a Science of Model Search").
 *
 * The trials that ended are split into the best γ(n) and the others. For each parameter by itself,
 * candidates are drawn from the density of the good ones, and the one is taken at which that density
 * is the largest multiple of the others' density. A parameter with a condition is estimated from the
 * trials in which it existed.
 *
 * Which trials count, best first: complete ones by value; pruned ones, those that came further first,
 * then by their last report; ones whose value was not finite. Running trials are among the others
 * whatever becomes of them, so that parallel trials keep apart. Trials that failed in another way do
 * not count.
 *
 * The constructor throws a `RangeError` where `startup` or `candidates` is not a whole number of at
 * least 1.
 *
 * @example
 * ```ts
 * import { logUniform, Study, TpeSampler } from "@graft/ml/tune";
 *
 * const study = new Study({ space: { rate: logUniform(1e-5, 1) }, sampler: new TpeSampler() });
 * await study.run(({ params }) => Math.log10(params.rate / 3e-3) ** 2, { trials: 30 });
 * console.log(study.best().params.rate); // near 3e-3
 * ```
 */
export class TpeSampler implements Sampler {
  /** The sampler's name. */
  readonly name = "tpe";
  /** Whether it has a last point. */
  readonly ends = false;
  readonly #startup: number;
  readonly #candidates: number;
  readonly #gamma: (n: number) => number;

  /** A sampler. */
  constructor(options: TpeOptions = {}) {
    const { startup = 10, candidates = 24, gamma = (n) => Math.min(Math.ceil(0.1 * n), 25) } =
      options;
    for (const [name, value] of Object.entries({ startup, candidates })) {
      if (!(Number.isSafeInteger(value) && value >= 1)) {
        throw new RangeError(`tpe: ${name} must be a whole number of at least 1, got ${value}`);
      }
    }
    this.#startup = startup;
    this.#candidates = candidates;
    this.#gamma = gamma;
  }

  /** A point of the space. */
  suggest({ space, direction, trials, random }: SamplerContext): Values {
    const ranked = rank(trials, direction);
    if (ranked.length < this.#startup) {
      return space.fill(({ parameter }) => draw(parameter, random));
    }
    const good = new Set(ranked.slice(0, this.#gamma(ranked.length)));
    const counted = new Set(ranked);
    const below = trials.filter((t) => good.has(t));
    const above = trials.filter((t) => t.state === "running" || (counted.has(t) && !good.has(t)));
    return space.fill((d) => this.#pick(d, below, above, random));
  }

  #pick(
    { name, parameter }: Dimension,
    below: readonly TrialRecord[],
    above: readonly TrialRecord[],
    random: Random,
  ): Value {
    const estimate = (trials: readonly TrialRecord[]) => {
      const values = trials.filter((t) => Object.hasOwn(t.params, name)).map((t) => t.params[name]);
      return parzen(parameter, values, forgetting(values.length));
    };
    const l = estimate(below);
    const g = estimate(above);
    let best: Value = null;
    let score = -Infinity;
    for (let i = 0; i < this.#candidates; i++) {
      const candidate = l.sample(random);
      const gain = l.logDensity(candidate) - g.logDensity(candidate);
      if (i === 0 || gain > score) {
        best = candidate;
        score = gain;
      }
    }
    return best;
  }
}

/** The trials that count, best first; ties in order of their numbers. */
function rank(trials: readonly TrialRecord[], direction: Direction): TrialRecord[] {
  const sign = direction === "minimize" ? 1 : -1;
  // NaN, a report that was not finite, comes last.
  const cost = (value: number | undefined) =>
    value === undefined || Number.isNaN(value) ? Infinity : sign * value;
  const key = (t: TrialRecord): [group: number, progress: number, cost: number] => {
    if (t.state === "complete") return [0, 0, cost(t.value)];
    const last = t.reports.at(-1);
    if (t.state === "pruned") return [1, last ? -last.step : Infinity, cost(last?.value)];
    return [2, 0, 0];
  };
  const counted = trials.filter((t) =>
    t.state === "complete" || t.state === "pruned" || t.diverged
  );
  const keys = new Map(counted.map((t) => [t, key(t)]));
  return counted.sort((a, b) => {
    const [x, y] = [keys.get(a)!, keys.get(b)!];
    for (let i = 0; i < 3; i++) {
      if (x[i] !== y[i]) return x[i] < y[i] ? -1 : 1;
    }
    return a.number - b.number;
  });
}

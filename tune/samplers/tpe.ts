/**
 * The tree-structured Parzen estimator.
 *
 * @module
 */

import type { Value } from "../parameters.ts";
import type { Random } from "../random.ts";
import type { Direction, Sampler, SamplerContext, TrialRecord } from "../records.ts";
import type { Dimension, Values } from "../space.ts";
import { type Estimator, forgetting, parzen } from "./parzen.ts";
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
    const { count, below, above } = split(trials, direction, this.#gamma);
    if (count < this.#startup) return space.fill(({ parameter }) => draw(parameter, random));
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
    return pick(Array.from({ length: this.#candidates }, () => l.sample(random)), l, g);
  }
}

/** The first of the candidates at which `l` is the largest multiple of `g`. */
export function pick(candidates: readonly Value[], l: Estimator, g: Estimator): Value {
  const gains = candidates.map((value) => l.logDensity(value) - g.logDensity(value));
  return candidates[gains.reduce((best, gain, i) => gain > gains[best] ? i : best, 0)];
}

/** The good trials and the others, both by number, and how many of them count. */
export function split(
  trials: readonly TrialRecord[],
  direction: Direction,
  gamma: (n: number) => number,
): { count: number; below: TrialRecord[]; above: TrialRecord[] } {
  const ranked = rank(trials, direction);
  const good = new Set(ranked.slice(0, gamma(ranked.length)));
  const counted = new Set(ranked);
  return {
    count: ranked.length,
    below: trials.filter((t) => good.has(t)),
    above: trials.filter((t) => t.state === "running" || (counted.has(t) && !good.has(t))),
  };
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

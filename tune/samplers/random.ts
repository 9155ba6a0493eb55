/**
 * The random sampler.
 *
 * @module
 */

import type { Plain, Value } from "../parameters.ts";
import type { Random } from "../random.ts";
import type { Sampler, SamplerContext } from "../records.ts";
import { countOf, type Values } from "../space.ts";

/**
 * Draws each trial from the space, whatever the trials before gave (Bergstra and Bengio 2012).
 *
 * @example
 * ```ts
 * import { RandomSampler, Study, uniform } from "@graft/ml/tune";
 *
 * const study = new Study({ space: { x: uniform(-1, 1) }, sampler: new RandomSampler(), seed: 3 });
 * console.log(study.ask()!.params.x);
 * ```
 */
export class RandomSampler implements Sampler {
  /** The sampler's name. */
  readonly name = "random";
  /** Whether it has a last point. */
  readonly ends = false;

  /** A point of the space. */
  suggest({ space, random }: SamplerContext): Values {
    return space.fill(({ parameter }) => draw(parameter, random));
  }
}

/** A value of one parameter, by its own distribution. */
export function draw(parameter: Plain, random: Random): Value {
  const u = random.next();
  switch (parameter.kind) {
    case "uniform":
      return clamp(parameter.low + u * (parameter.high - parameter.low), parameter);
    case "logUniform":
      return clamp(logBetween(parameter.low, parameter.high, u), parameter);
    case "integer": {
      const { low, high, step, log } = parameter;
      // Each whole number owns what rounds to it.
      if (log) return clamp(Math.round(logBetween(low - 0.5, high + 0.5, u)), parameter);
      return low + step * Math.floor(u * countOf(parameter));
    }
    case "choice":
      return parameter.values[Math.floor(u * parameter.values.length)];
  }
}

/** `value`, or the bound that rounding carried it over. */
export function clamp(value: number, { low, high }: { low: number; high: number }): number {
  return Math.min(Math.max(value, low), high);
}

function logBetween(low: number, high: number, u: number): number {
  return Math.exp(Math.log(low) + u * (Math.log(high) - Math.log(low)));
}

/**
 * Metrics of all ranks together.
 *
 * @module
 */

import type { ProcessGroup } from "./group.ts";

/**
 * The mean over all ranks of each metric, a rank weighing `weight`: the targets that its losses are a
 * mean over. Every rank gets the same bits, so that all decide alike, on a loss that is NaN too. A rank
 * of weight 0 (an empty share) does not count, whatever its metrics are.
 *
 * @throws RangeError if `weight` is negative or not a number.
 * @throws Error if the ranks' metrics have other names, or a rank is lost.
 *
 * @example
 * ```ts
 * import { reduceMetrics, singleGroup } from "@graft/ml/dist";
 *
 * const group = singleGroup(); // in a program: await initProcessGroup()
 * const { loss } = await reduceMetrics(group, { loss: 2.5 }, 1024);
 * console.assert(loss === 2.5);
 * ```
 */
export async function reduceMetrics<K extends string>(
  group: ProcessGroup,
  metrics: Readonly<Record<K, number>>,
  weight: number = 1,
): Promise<Record<K, number>> {
  if (!(weight >= 0 && weight < Infinity)) {
    throw new RangeError(`reduceMetrics: weight needs a number from 0 on, got ${weight}`);
  }
  if (group.size === 1) return { ...metrics }; // not even rounded
  const names = Object.keys(metrics) as K[];
  const values = names.map((name) => weight === 0 ? 0 : metrics[name] * weight);
  const label = `metrics ${names.join(", ")}`;
  const [total, ...sums] = await group.allReduce(Float64Array.of(weight, ...values), { label });
  return Object.fromEntries(names.map((name, i) => [name, sums[i] / total])) as Record<K, number>;
}

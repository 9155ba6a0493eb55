/**
 * Weighted combinations of what adapters change, element by element, on the host.
 *
 * @module
 */

import { uniform } from "../core/mod.ts";

/**
 * How changes are combined:
 *
 * - `linear`: their weighted sum.
 * - `magnitude_prune`: of each only the largest elements, `density` of them.
 * - `dare_linear`: of each a random share `density`, scaled by 1 / density (Yu et al. 2024).
 * - `ties`: pruned by magnitude; of each element those that have the majority's sign are averaged (Yadav
 *   et al. 2023). `dare_ties`: the same, pruned at random.
 */
export type Arithmetic = "linear" | "magnitude_prune" | "dare_linear" | "ties" | "dare_ties";

/** What the majority's sign is: that of the elements' sum, or that of most of them. */
export type MajoritySign = "total" | "frequency";

/** The combination of `changes`, all of one length, with weights. Random shares are the default generator's. */
export async function combined(
  changes: readonly Float64Array[],
  weights: readonly number[],
  type: Arithmetic,
  density: number,
  majority: MajoritySign,
): Promise<Float64Array> {
  const kept: Float64Array[] = [];
  for (const values of changes) kept.push(await pruned(values, type, density));
  const sum = new Float64Array(kept[0].length);
  const elects = type === "ties" || type === "dare_ties";
  for (let i = 0; i < sum.length; i++) {
    // Signs are elected without the weights, and zero is positive, as PEFT has it.
    const votes = elects
      ? kept.reduce((t, x) => t + (majority === "total" ? x[i] : Math.sign(x[i])), 0)
      : 0;
    let count = 0;
    kept.forEach((x, k) => {
      if (elects && Math.sign(x[i]) !== (votes >= 0 ? 1 : -1)) return;
      sum[i] += x[i] * weights[k];
      count++;
    });
    if (elects && count > 1) sum[i] /= count;
  }
  return sum;
}

async function pruned(
  values: Float64Array,
  type: Arithmetic,
  density: number,
): Promise<Float64Array> {
  if (type === "linear" || density === 1) return values;
  return type.startsWith("dare") ? await thinned(values, density) : largestOf(values, density);
}

/** The `density` largest elements; the others are 0. */
function largestOf(values: Float64Array, density: number): Float64Array {
  const kept = Math.max(1, Math.floor(density * values.length));
  const order = Array.from(values.keys()).sort((i, j) => Math.abs(values[j]) - Math.abs(values[i]));
  const result = new Float64Array(values.length);
  for (const i of order.slice(0, kept)) result[i] = values[i];
  return result;
}

/** Each element with probability `density`, scaled so that the expectation stays. */
async function thinned(values: Float64Array, density: number): Promise<Float64Array> {
  const draws = await uniform([values.length]).data();
  return values.map((x, i) => draws[i] < density ? x / density : 0);
}

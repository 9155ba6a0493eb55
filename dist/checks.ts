/**
 * What ranks compare, so that ranks that differ get an error that says in what.
 *
 * @module
 */

import { show } from "../core/shape.ts";
import type { Named } from "./buckets.ts";
import { hashOf } from "./call.ts";
import type { ProcessGroup } from "./group.ts";
import { allGatherValues } from "./values.ts";

/** One line for each variable: what ranks compare. */
export function describeAll(named: readonly Named[]): string[] {
  return named.map(([name, { shape, dtype, requiresGrad }]) =>
    `${name} ${dtype}${show(shape)}${requiresGrad ? "" : ", frozen"}`
  );
}

/**
 * Parts of 20 bits of the hash of `lines`, each with its square: their sums over the ranks are exact
 * in f64, and all ranks are alike where n·Σx² = (Σx)².
 */
export function fingerprint(lines: readonly string[]): number[] {
  const hash = hashOf(lines.join("\n"));
  const parts = [hash % 2 ** 20, Math.floor(hash / 2 ** 20) % 2 ** 20];
  return parts.flatMap((x) => [x, x * x]);
}

/** Whether the sums over `size` ranks of their fingerprints say that all are `own`. */
export function isAlike(sums: ArrayLike<number>, own: readonly number[], size: number): boolean {
  return own.every((x, i) => sums[i] === size * x);
}

/** Throws on every rank what the first difference between the ranks' `lines` is. */
export async function throwDifference(
  group: ProcessGroup,
  what: string,
  lines: readonly string[],
  advice: string,
): Promise<never> {
  const all = await allGatherValues(group, lines, { label: `${what}: what differs` });
  let first: { at: number; rank: number } | null = null;
  all.forEach((other, rank) => {
    const length = Math.max(other.length, all[0].length);
    let at = 0;
    while (at < length && other[at] === all[0][at]) at++;
    if (at < length && (first === null || at < first.at)) first = { at, rank };
  });
  if (first === null) throw new Error(`internal: ${what}: the ranks differ, and yet do not`);
  const { at, rank } = first;
  const of = (r: number): string => all[r][at] ?? "nothing more";
  throw new Error(
    `${what} must be the same on every rank, but number ${at} is ${of(0)} on rank 0, and ${
      of(rank)
    } on rank ${rank}${advice}`,
  );
}

/**
 * A small random forest for regression, whose trees can say how their prediction varies along one
 * parameter.
 *
 * @module
 */

import type { Random } from "./random.ts";

/** One column of the data. */
export interface Column {
  /** The number of categories; undefined for a number in [0, 1]. */
  readonly categories?: number;
}

/** A box of the unit cube in which a tree is constant. */
interface Leaf {
  readonly value: number;
  /** For a number: the interval. For a category: which ones. */
  readonly sides: readonly Side[];
}

type Side = { readonly from: number; readonly to: number } | { readonly in: readonly boolean[] };

/** Leaves with fewer rows than twice this are not split. */
const LEAST = 2;

/**
 * Grows one tree by least squares on the rows named (with repeats, for a bootstrap), and gives the
 * part of its variance over the unit cube that each column explains by itself: the variance of the
 * prediction's mean over all other columns, over the whole variance (Hutter, Hoos and Leyton-Brown
 * 2014, "An Efficient Approach for Assessing Hyperparameter Importance", section 3). Undefined for a
 * tree that is constant.
 */
export function treeImportance(
  columns: readonly Column[],
  rows: readonly (readonly number[])[],
  targets: readonly number[],
  sample: readonly number[],
  random: Random,
): number[] | undefined {
  const leaves: Leaf[] = [];
  const whole = columns.map(({ categories }): Side =>
    categories === undefined ? { from: 0, to: 1 } : { in: new Array(categories).fill(true) }
  );
  const grow = (at: readonly number[], sides: readonly Side[]) => {
    const split = at.length < 2 * LEAST ? undefined : bestSplit(columns, rows, targets, at, random);
    if (!split) {
      leaves.push({ value: at.reduce((sum, i) => sum + targets[i], 0) / at.length, sides });
      return;
    }
    const { column, left } = split;
    const side = sides[column];
    const goes = (i: number) => left(rows[i][column]);
    const [a, b]: [Side, Side] = "in" in side
      ? [
        { in: side.in.map((there, c) => there && left(c)) },
        { in: side.in.map((there, c) => there && !left(c)) },
      ]
      : [{ from: side.from, to: split.at }, { from: split.at, to: side.to }];
    grow(at.filter(goes), sides.with(column, a));
    grow(at.filter((i) => !goes(i)), sides.with(column, b));
  };
  grow(sample, whole);

  const volumes = leaves.map(({ sides }) => sides.reduce((v, side) => v * extent(side), 1));
  const mean = leaves.reduce((sum, { value }, i) => sum + volumes[i] * value, 0);
  const variance = leaves.reduce((sum, { value }, i) => sum + volumes[i] * (value - mean) ** 2, 0);
  if (!(variance > 0)) return undefined;
  return columns.map((_, j) => marginalVariance(leaves, volumes, j, mean) / variance);
}

/** The share of its column that a side covers. */
function extent(side: Side): number {
  if (!("in" in side)) return side.to - side.from;
  return side.in.filter(Boolean).length / side.in.length;
}

/** The variance, along column j, of the mean over all other columns. */
function marginalVariance(
  leaves: readonly Leaf[],
  volumes: readonly number[],
  j: number,
  mean: number,
): number {
  const first = leaves[0].sides[j];
  // The column in cells within which no leaf ends, and the part of the column that each is.
  const cuts = "in" in first ? [] : [
    ...new Set(leaves.flatMap(({ sides }) => {
      const { from, to } = sides[j] as { from: number; to: number };
      return [from, to];
    })),
  ].sort((a, b) => a - b);
  const shares = "in" in first
    ? first.in.map(() => 1 / first.in.length)
    : cuts.slice(1).map((cut, i) => cut - cuts[i]);
  const place = new Map(cuts.map((cut, i) => [cut, i]));
  const marginal = new Array<number>(shares.length).fill(0);
  leaves.forEach(({ value, sides }, i) => {
    const side = sides[j];
    const others = value * volumes[i] / extent(side); // its volume across the other columns
    if ("in" in side) side.in.forEach((there, c) => there && (marginal[c] += others));
    else for (let c = place.get(side.from)!; c < place.get(side.to)!; c++) marginal[c] += others;
  });
  return shares.reduce((sum, share, c) => sum + share * (marginal[c] - mean) ** 2, 0);
}

interface Split {
  readonly column: number;
  /** The cut, for a number. */
  readonly at: number;
  /** Whether a value goes to the left. */
  readonly left: (value: number) => boolean;
}

/** The split that lowers the sum of squares most, among a random 5 of 6 of the columns. */
function bestSplit(
  columns: readonly Column[],
  rows: readonly (readonly number[])[],
  targets: readonly number[],
  at: readonly number[],
  random: Random,
): Split | undefined {
  const open = columns.map((_, j) => j);
  const tried = Math.max(1, Math.ceil(columns.length * 5 / 6));
  let best: Split | undefined;
  let gain = 1e-12 * at.reduce((sum, i) => sum + targets[i] ** 2, 0);
  for (let k = 0; k < tried; k++) {
    const column = open.splice(random.integer(open.length), 1)[0];
    const nominal = columns[column].categories !== undefined;
    // Categories in order of their mean: the best of all two-way splits is among those of that order.
    const order = nominal ? meansOf(rows, targets, at, column) : undefined;
    const key = (i: number) => order ? order.get(rows[i][column])! : rows[i][column];
    const sorted = at.toSorted((a, b) => key(a) - key(b));
    const total = sorted.reduce((sum, i) => sum + targets[i], 0);
    let left = 0;
    for (let n = 1; n < sorted.length; n++) {
      left += targets[sorted[n - 1]];
      const [low, high] = [key(sorted[n - 1]), key(sorted[n])];
      if (!(low < high) || n < LEAST || sorted.length - n < LEAST) continue;
      const right = total - left;
      const less = left ** 2 / n + right ** 2 / (sorted.length - n) - total ** 2 / sorted.length;
      if (!(less > gain)) continue;
      const cut = (low + high) / 2;
      if (!order && !(low < cut && cut <= high)) continue; // neighbours in floating point
      gain = less;
      // A category that is not among these rows goes left: any rule serves, as long as it is one.
      best = order
        ? { column, at: cut, left: (c) => (order.get(c) ?? -Infinity) < cut }
        : { column, at: cut, left: (x) => x < cut };
    }
  }
  return best;
}

function meansOf(
  rows: readonly (readonly number[])[],
  targets: readonly number[],
  at: readonly number[],
  column: number,
): Map<number, number> {
  const sums = new Map<number, [sum: number, count: number]>();
  for (const i of at) {
    const entry = sums.get(rows[i][column]) ?? [0, 0];
    sums.set(rows[i][column], [entry[0] + targets[i], entry[1] + 1]);
  }
  return new Map([...sums].map(([c, [sum, count]]) => [c, sum / count]));
}

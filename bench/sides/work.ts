/**
 * What a side of the comparison is to the driver, and the numbers that all sides compute with.
 *
 * @module
 */

import type { Case } from "../cases.ts";

/** A case made ready on a side. */
export interface Work {
  /** Does the work once; its results need not be there yet. */
  run(): void | Promise<void>;
  /** Resolves when all work is done. Absent: it is when `run` returns. */
  sync?(): Promise<void>;
  /** Numbers that sum up the results, for comparison: losses of the steps taken, or {@linkcode power}. */
  value(): Promise<readonly number[]>;
  /** Milliseconds of a run in which the host recorded, looked up and submitted; median of later runs. */
  host?(): number;
  /** Gives memory back. */
  close?(): void;
}

/** One library on one device. */
export interface Side {
  /** Library, version, what it runs on. */
  readonly name: string;
  /** Null where the side has no code for the case. `data` is a folder that the case needs. */
  open(work: Case, data: string | null): Promise<Work | null>;
}

/**
 * `count` numbers in [-1, 1), the same in every language: the finalizer of MurmurHash3 over their
 * places.
 */
export function numbers(count: number, seed: number, scale = 1): Float32Array<ArrayBuffer> {
  const out = new Float32Array(count);
  for (let i = 0; i < count; i++) out[i] = ((hash(i, seed) >>> 8) / 2 ** 23 - 1) * scale;
  return out;
}

/** `count` whole numbers in [0, below). */
export function integers(count: number, seed: number, below: number): Int32Array<ArrayBuffer> {
  return Int32Array.from({ length: count }, (_, i) => (hash(i, seed) >>> 8) % below);
}

function hash(i: number, seed: number): number {
  let h = Math.imul(i + 1, 0x9e3779b1) ^ Math.imul(seed, 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

/** The mean square of `values`, and their mean product with {@linkcode numbers}, which sees a permutation. */
export function power(values: ArrayLike<number>): number[] {
  const count = Math.min(values.length, 1 << 16);
  const weights = numbers(count, 7);
  let square = 0;
  let product = 0;
  for (let i = 0; i < count; i++) {
    square += values[i] ** 2;
    product += values[i] * weights[i];
  }
  return [square / count, product / Math.sqrt(count * square || 1)];
}

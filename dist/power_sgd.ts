/**
 * Gradients as products of thin matrices on the wire.
 *
 * @module
 */

import { type Bucket, type BucketEntry, bucketLabel } from "./buckets.ts";
import { hashOf } from "./call.ts";
import type { ProcessGroup } from "./group.ts";
import type { GradientHook } from "./hooks.ts";

/** Options of {@linkcode powerSgd}. */
export interface PowerSgdOptions {
  /** Columns of the thin matrices: more is nearer, and more to send. Default 2. */
  readonly rank?: number;
  /** Steps that send everything first, while gradients change fast. Default 10. */
  readonly startStep?: number;
  /** A matrix is compressed where that sends less than one part in so many. Default 2. */
  readonly minRatio?: number;
}

/** What a parameter carries from step to step. */
interface State {
  /** [columns, rank], row-major: the last right factor. */
  q: Float32Array<ArrayBuffer>;
  /** [rows, columns]: what this rank has not sent yet. */
  readonly error: Float32Array<ArrayBuffer>;
  steps: number;
}

/** A gradient as a matrix. */
interface Matrix {
  readonly entry: BucketEntry;
  readonly rows: number;
  readonly columns: number;
  readonly rank: number;
  readonly state: State;
  /** [rows, columns], a view of the bucket. */
  readonly values: Float32Array<ArrayBuffer>;
}

/**
 * PowerSGD (Vogels et al. 2019, algorithms 1 and 2): a gradient M [n, m] goes over the wire as P [n, r]
 * and Q [m, r], one step of the power method from the last step's Q. What is left out, M − PQᵀ, is kept
 * on its rank and added to the next gradient (error feedback), so that nothing is lost for good. Vectors
 * and small matrices are sent whole.
 *
 * The state is not part of a checkpoint: a run that goes on begins with whole gradients again.
 *
 * @throws RangeError if an option is not a number of its kind.
 *
 * @example
 * ```ts ignore
 * new DistributedDataParallel(model, group, { hook: powerSgd({ rank: 4 }) });
 * ```
 */
export function powerSgd(options: PowerSgdOptions = {}): GradientHook {
  const { rank = 2, startStep = 10, minRatio = 2 } = options;
  if (!(Number.isInteger(rank) && rank > 0)) {
    throw new RangeError(`powerSgd: rank needs a whole number from 1 on, got ${rank}`);
  }
  if (!(Number.isInteger(startStep) && startStep >= 0)) {
    throw new RangeError(`powerSgd: startStep needs a whole number from 0 on, got ${startStep}`);
  }
  if (!(minRatio >= 1)) {
    throw new RangeError(`powerSgd: minRatio needs at least 1, got ${minRatio}`);
  }
  const states = new Map<string, State>();
  return {
    name: `PowerSGD of rank ${rank} from step ${startStep}, ratio ${minRatio}`,
    async reduce(bucket, data, group) {
      const [matrices, whole] = split(bucket, data, states, { rank, startStep, minRatio });
      const label = bucketLabel(bucket);
      await sendWhole(whole, data, group, label);
      if (matrices.length > 0) await sendFactors(matrices, group, label);
      return data;
    },
  };
}

/** Which entries of a bucket go as factors this time, and which whole. */
function split(
  { entries }: Bucket,
  data: Float32Array<ArrayBuffer>,
  states: Map<string, State>,
  { rank, startStep, minRatio }: Required<PowerSgdOptions>,
): [Matrix[], BucketEntry[]] {
  const matrices: Matrix[] = [];
  const whole: BucketEntry[] = [];
  for (const entry of entries) {
    const { name, shape, offset, length } = entry;
    const rows = shape[0] ?? 1;
    const columns = length / Math.max(1, rows);
    const thin = Math.min(rank, rows, columns);
    if (shape.length < 2 || length === 0 || (rows + columns) * thin * minRatio >= length) {
      whole.push(entry);
      continue;
    }
    let state = states.get(name);
    if (!state || state.error.length !== length) {
      state = { q: noise(name, columns * thin), error: new Float32Array(length), steps: 0 };
      states.set(name, state);
    }
    if (state.steps++ < startStep) {
      whole.push(entry);
      continue;
    }
    const values = data.subarray(offset, offset + length);
    matrices.push({ entry, rows, columns, rank: thin, state, values });
  }
  return [matrices, whole];
}

/** Adds up the entries that are not compressed, in one collective. */
async function sendWhole(
  entries: readonly BucketEntry[],
  data: Float32Array<ArrayBuffer>,
  group: ProcessGroup,
  label: string,
): Promise<void> {
  if (entries.length === 0) return;
  const parts = entries.map(({ offset, length }) => data.subarray(offset, offset + length));
  await sumTogether(parts, group, `${label}, whole`);
}

/** Puts into each matrix the sum over the ranks of its approximations. */
async function sendFactors(
  matrices: readonly Matrix[],
  group: ProcessGroup,
  label: string,
): Promise<void> {
  // `values` stays M = gradient + error until the end; P = Σ M Q, orthonormal; Q = Σ Mᵀ P.
  for (const { values, state } of matrices) addTo(values, state.error);
  const ps = matrices.map(timesQ);
  await sumTogether(ps, group, `${label}, left factors`);
  // A gradient that is not finite stays so, on every rank, and leaves no trace in the state.
  if (!ps.every((p) => p.every(Number.isFinite))) {
    for (const { values } of matrices) values.fill(NaN);
    return;
  }
  matrices.forEach(({ rows, rank }, i) => orthonormalize(ps[i], rows, rank));
  const qs = matrices.map((matrix, i) => transposedTimes(matrix, ps[i]));
  const own = qs.map((q) => q.slice());
  await sumTogether(qs, group, `${label}, right factors`);
  matrices.forEach((matrix, i) => {
    const { state, values } = matrix;
    state.q = revived(qs[i], matrix);
    // What this rank gave to the sum is P times its own Mᵀ P, transposed.
    state.error.set(values);
    addProduct(state.error, matrix, ps[i], own[i], -1);
    values.fill(0);
    addProduct(values, matrix, ps[i], qs[i], 1);
  });
}

/** Replaces arrays by their sums over the ranks, in one collective. */
async function sumTogether(
  parts: readonly Float32Array<ArrayBuffer>[],
  group: ProcessGroup,
  label: string,
): Promise<void> {
  const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  await group.allReduce(all, { label });
  at = 0;
  for (const part of parts) part.set(all.subarray(at, at += part.length));
}

function addTo(into: Float32Array, other: Float32Array): void {
  for (let i = 0; i < into.length; i++) into[i] += other[i];
}

/** M Q, [rows, rank]. */
function timesQ({ rows, columns, rank, values, state }: Matrix): Float32Array<ArrayBuffer> {
  const p = new Float32Array(rows * rank);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const x = values[i * columns + j];
      for (let k = 0; k < rank; k++) p[i * rank + k] += x * state.q[j * rank + k];
    }
  }
  return p;
}

/** Mᵀ P, [columns, rank]. */
function transposedTimes(
  { rows, columns, rank, values }: Matrix,
  p: Float32Array,
): Float32Array<ArrayBuffer> {
  const q = new Float32Array(columns * rank);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const x = values[i * columns + j];
      for (let k = 0; k < rank; k++) q[j * rank + k] += x * p[i * rank + k];
    }
  }
  return q;
}

/** Q for the next step: a column that came to nothing starts anew, else it would stay nothing. */
function revived(
  q: Float32Array<ArrayBuffer>,
  { entry, columns, rank }: Matrix,
): Float32Array<ArrayBuffer> {
  const next = q.slice();
  for (let k = 0; k < rank; k++) {
    if (norm(q, columns, rank, k) > 0) continue;
    noise(`${entry.name}, ${k}`, columns).forEach((x, j) => next[j * rank + k] = x);
  }
  return next;
}

/** Adds `factor` P Qᵀ to `into` [rows, columns]. */
function addProduct(
  into: Float32Array,
  { rows, columns, rank }: Matrix,
  p: Float32Array,
  q: Float32Array,
  factor: number,
): void {
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += p[i * rank + k] * q[j * rank + k];
      into[i * columns + j] += factor * sum;
    }
  }
}

/** What is left of a column, of so much of it, is rounding: the matrix has no more rank. */
const ROUNDING = 1e-5;

/** Makes the columns of P [rows, rank] orthonormal or 0, by modified Gram-Schmidt. */
function orthonormalize(p: Float32Array, rows: number, rank: number): void {
  for (let k = 0; k < rank; k++) {
    const before = norm(p, rows, rank, k);
    for (let other = 0; other < k; other++) {
      let dot = 0;
      for (let i = 0; i < rows; i++) dot += p[i * rank + k] * p[i * rank + other];
      for (let i = 0; i < rows; i++) p[i * rank + k] -= dot * p[i * rank + other];
    }
    const after = norm(p, rows, rank, k);
    const inverse = after > ROUNDING * before ? 1 / after : 0;
    for (let i = 0; i < rows; i++) p[i * rank + k] *= inverse;
  }
}

/** The norm of column `k`. */
function norm(p: Float32Array, rows: number, rank: number, k: number): number {
  let square = 0;
  for (let i = 0; i < rows; i++) square += p[i * rank + k] ** 2;
  return Math.sqrt(square);
}

/** Numbers in [-1, 1) that depend on `name` alone: the same on every rank. */
function noise(name: string, length: number): Float32Array<ArrayBuffer> {
  let x = hashOf(name) | 1;
  return Float32Array.from({ length }, () => {
    x ^= x << 13; // Marsaglia's xorshift
    x ^= x >>> 17;
    x ^= x << 5;
    return (x | 0) / 2 ** 31;
  });
}

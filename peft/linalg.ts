/**
 * Decompositions of matrices on the host, in double precision: what some starts and combinations of
 * adapters need once. A matrix is an array of its columns.
 *
 * @module
 */

/** A matrix as its columns, each of the same length. */
export type Columns = Float64Array[];

/** The columns of row-major values [rows, cols]. */
export function columns(values: ArrayLike<number>, rows: number, cols: number): Columns {
  return Array.from(
    { length: cols },
    (_, c) => Float64Array.from({ length: rows }, (_, r) => values[r * cols + c]),
  );
}

/** Row-major values of a matrix. */
export function rowMajor(m: Columns, rows: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(rows * m.length);
  m.forEach((column, c) => column.forEach((x, r) => values[r * m.length + c] = x));
  return values;
}

/** The transpose of a matrix with `rows` rows. */
export function transposed(m: Columns, rows: number): Columns {
  return Array.from({ length: rows }, (_, r) => Float64Array.from(m, (column) => column[r]));
}

/** `m` times `n`, where `m` has `rows` rows. */
export function product(m: Columns, rows: number, n: Columns): Columns {
  return n.map((weights) => {
    const sum = new Float64Array(rows);
    m.forEach((column, k) => addScaled(sum, column, weights[k]));
    return sum;
  });
}

/**
 * A = Q R with orthonormal columns of Q, by the modified method of Gram and Schmidt, done twice. R is
 * [min(m, n), n]; the columns of Q that depend on those before are 0.
 */
export function qr(a: Columns): { q: Columns; r: Columns } {
  const rows = a[0].length, rank = Math.min(rows, a.length);
  const q: Columns = [];
  const r = a.map(() => new Float64Array(rank));
  a.forEach((column, c) => {
    const rest = column.slice();
    const size = norm(column);
    for (let pass = 0; pass < 2; pass++) {
      q.forEach((unit, k) => {
        const along = dot(unit, rest);
        r[c][k] += along;
        addScaled(rest, unit, -along);
      });
    }
    if (q.length === rank) return;
    const length = norm(rest);
    const independent = length > 1e-12 * size;
    r[c][q.length] = independent ? length : 0;
    q.push(independent ? rest.map((x) => x / length) : new Float64Array(rows));
  });
  return { q, r };
}

/** A = U diag(s) Vᵀ, with the largest of s first. */
export interface Svd {
  /** Left vectors, as columns. */
  readonly u: Columns;
  /** Singular values. */
  readonly s: Float64Array;
  /** Right vectors, as columns. */
  readonly v: Columns;
}

/** The whole decomposition, by one-sided rotations (Hestenes 1958). */
export function svd(a: Columns): Svd {
  const rows = a[0].length;
  if (rows < a.length) {
    const { u, s, v } = svd(transposed(a, rows));
    return { u: v, s, v: u };
  }
  const n = a.length;
  const u = a.map((column) => column.slice());
  const v = a.map((_, c) => Float64Array.from({ length: n }, (_, r) => r === c ? 1 : 0));
  for (let sweep = 0, rotated = true; rotated && sweep < 60; sweep++) {
    rotated = false;
    for (let p = 0; p < n - 1; p++) {
      for (let q = p + 1; q < n; q++) {
        const pp = dot(u[p], u[p]), qq = dot(u[q], u[q]), pq = dot(u[p], u[q]);
        if (Math.abs(pq) <= 1e-15 * Math.sqrt(pp * qq) || pq === 0) continue;
        rotated = true;
        const zeta = (qq - pp) / (2 * pq);
        const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.sqrt(1 + zeta * zeta));
        const c = 1 / Math.sqrt(1 + t * t);
        rotate(u[p], u[q], c, c * t);
        rotate(v[p], v[q], c, c * t);
      }
    }
  }
  const s = u.map(norm);
  const order = s.map((_, i) => i).sort((i, j) => s[j] - s[i]);
  return {
    u: order.map((i) => s[i] > 0 ? u[i].map((x) => x / s[i]) : u[i]),
    s: Float64Array.from(order, (i) => s[i]),
    v: order.map((i) => v[i]),
  };
}

/**
 * The `rank` largest singular values and their vectors: whole for small matrices, else from the subspace
 * that `iterations` of powers of A Aᵀ single out (Halko, Martinsson, Tropp 2011).
 */
export function topSvd(a: Columns, rank: number, iterations?: number): Svd {
  const rows = a[0].length, small = Math.min(rows, a.length);
  if (small <= Math.max(128, 2 * rank) && iterations === undefined) return cut(svd(a), rank);
  const width = Math.min(rank + 16, small);
  let state = 1;
  const random = (): number => { // any start will do, as long as it is the same one each time
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    return state / 2 ** 31;
  };
  const at = transposed(a, rows);
  const start = Array.from({ length: width }, () => Float64Array.from(a, random));
  let q = qr(product(a, rows, start)).q;
  for (let i = 0; i < (iterations ?? 24); i++) {
    q = qr(product(a, rows, qr(product(at, a.length, q)).q)).q;
  }
  // A ≈ Q Qᵀ A, and Qᵀ A is small.
  const { u, s, v } = svd(transposed(product(at, a.length, q), a.length));
  return cut({ u: product(q, rows, u), s, v }, rank);
}

function cut({ u, s, v }: Svd, rank: number): Svd {
  return { u: u.slice(0, rank), s: s.slice(0, rank), v: v.slice(0, rank) };
}

function dot(x: Float64Array, y: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}

function norm(x: Float64Array): number {
  return Math.sqrt(dot(x, x));
}

function addScaled(sum: Float64Array, x: Float64Array, factor: number): void {
  for (let i = 0; i < x.length; i++) sum[i] += factor * x[i];
}

function rotate(x: Float64Array, y: Float64Array, c: number, s: number): void {
  for (let i = 0; i < x.length; i++) {
    const xi = x[i];
    x[i] = c * xi - s * y[i];
    y[i] = s * xi + c * y[i];
  }
}

/**
 * Products B A of small matrices on the host: side by side, and cut to a lower rank.
 *
 * @module
 */

import { type Columns, columns, product, qr, type Svd, svd, topSvd, transposed } from "./linalg.ts";
import type { LoraPair } from "./pair.ts";

/** The adapter of a layer, and its weight in a combination. */
export interface Term {
  /** Its matrices. */
  readonly pair: LoraPair;
  /** The weight. */
  readonly weight: number;
}

/** A [r, in] and B [out, r] as columns. */
export interface Factors {
  /** A */
  readonly a: Columns;
  /** B */
  readonly b: Columns;
  /** Rank. */
  readonly r: number;
}

/** The factors side by side: their product is Σ w ΔW. Starts that are taken off are among them. */
export async function sideBySide(terms: readonly Term[]): Promise<Factors> {
  const [out, inner] = [terms[0].pair.b.shape[0], terms[0].pair.a.shape[1]];
  const rows: Columns = [], b: Columns = [];
  for (const { pair, weight } of terms) {
    const parts = [
      { a: pair.a, b: pair.b, sign: 1 },
      ...pair.start ? [{ ...pair.start, sign: -1 }] : [],
    ];
    for (const part of parts) {
      const r = part.a.shape[0];
      const factor = part.sign * weight * pair.scale;
      rows.push(...transposed(columns(await part.a.data(), r, inner), r));
      b.push(...columns(await part.b.data(), out, r).map((x) => x.map((y) => y * factor)));
    }
  }
  return { a: transposed(rows, inner), b, r: b.length };
}

/** The best product of a lower rank (Eckart and Young 1936), from the small factors alone. */
export function cutProduct(factors: Factors, rank: number): Factors {
  const { a, b, r } = factors;
  if (r <= rank) return factors;
  const left = qr(b), right = qr(transposed(a, r)); // B = Qb Rb, Aᵀ = Qa Ra
  // Rb Raᵀ, whose singular values are those of B A.
  const k = left.q.length;
  const { u, s, v } = svd(product(left.r, k, transposed(right.r, right.q.length)));
  return balanced({
    u: product(left.q, b[0].length, u).slice(0, rank),
    s: s.slice(0, rank),
    v: product(right.q, a.length, v).slice(0, rank),
  });
}

/** The best product of rank `rank` for a whole matrix [out, in], row-major. */
export function cutMatrix(values: Float64Array, out: number, inner: number, rank: number): Factors {
  return balanced(topSvd(columns(values, out, inner), rank));
}

/** U diag(s) Vᵀ as B A, with √s in each. */
function balanced({ u, s, v }: Svd): Factors {
  const weighted = (vectors: Columns): Columns =>
    vectors.map((x, i) => x.map((y) => y * Math.sqrt(s[i])));
  return { a: transposed(weighted(v), v[0].length), b: weighted(u), r: u.length };
}

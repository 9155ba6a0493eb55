/**
 * Vector arithmetic that is more than one instruction: fused multiply-add, and the elementary
 * functions, within about 2 ulp of the true value (sin and cos for arguments up to 1e4). The
 * polynomials are weighted minimax fits over the reduced ranges.
 *
 * @module
 */

import { type Code, f32x4, f64x2, i32x4, i64x2, type Local, v128 } from "./code.ts";
import type { Func } from "./func.ts";

/** Vector functions emitted into one function. Arguments and results are vectors of f32. */
export class Vectors {
  readonly #f: Func;
  readonly #relaxed: boolean;

  constructor(f: Func, relaxed: boolean) {
    this.#f = f;
    this.#relaxed = relaxed;
  }

  /** `value` in all lanes, kept in a local. */
  constant(value: number): Code {
    return this.#f.hoist(f32x4.const(value));
  }

  /** `a · b + c`, rounded once where the machine can. */
  madd(a: Code, b: Code, c: Code): Code {
    return this.#relaxed ? f32x4.relaxed_madd(a, b, c) : f32x4.add(f32x4.mul(a, b), c);
  }

  /** Σ coefficients[i] · x^i. */
  polynomial(x: Code, coefficients: readonly number[]): Code {
    return coefficients.reduceRight<Code | null>(
      (sum, c) =>
        sum === null ? this.constant(c) : this.#f.let(this.madd(sum, x, this.constant(c))),
      null,
    )!;
  }

  /** e^x; below -87 it is 0. */
  exp(x: Code): Code {
    const f = this.#f;
    const y = f.let(
      f32x4.pmax(f32x4.pmin(x, this.constant(89)), this.constant(-87.5)),
    );
    // Adding 1.5 · 2^23 leaves n + 126, n the nearest integer to y / ln 2, in the low bits.
    const magic = this.constant(12582912 + 126);
    const t = f.let(this.madd(y, this.constant(Math.LOG2E), magic));
    const n = f.let(f32x4.sub(t, magic));
    const high = f.let(this.madd(n, this.constant(-0.693359375), y));
    const r = f.let(this.madd(n, this.constant(2.12194440054690583e-4), high));
    // 2 e^r times 2^(n-1), which is in range for n = 128, and 0 for n = -126.
    const p = this.polynomial(r, [
      2,
      2,
      0.9999998682483514,
      0.33333040214290546,
      0.08333678845574446,
      0.01673756094749131,
      0.0027628932278406,
    ]);
    return f.let(f32x4.mul(p, i32x4.shl(t, 23)));
  }

  /** Natural logarithm: -inf at 0, NaN below. */
  log(x: Code): Code {
    const f = this.#f;
    const value = f.let(x);
    const tiny = f.let(f32x4.lt(value, this.constant(1.17549435e-38)));
    const scaled = f.let(
      v128.bitselect(f32x4.mul(value, this.constant(2 ** 25)), value, tiny),
    );
    // The mantissa is brought to [sqrt(1/2), sqrt(2)).
    const shifted = f.let(i32x4.sub(scaled, f.hoist(i32x4.const(0x3f3504f3))));
    const exponent = f32x4.convert_i32x4_s(i32x4.shr_s(shifted, 23));
    const e = f.let(f32x4.sub(exponent, v128.and(tiny, this.constant(25))));
    const mantissa = i32x4.add(
      v128.and(shifted, f.hoist(i32x4.const(0x007fffff))),
      f.hoist(i32x4.const(0x3f3504f3)),
    );
    const z = f.let(f32x4.sub(mantissa, this.constant(1)));
    const z2 = f.let(f32x4.mul(z, z));
    const p = this.polynomial(z, [
      0.33333309875632744,
      -0.24999985133718974,
      0.2000227002396696,
      -0.1666936481490145,
      0.14217773268498915,
      -0.12381706787676135,
      0.11877446842635489,
      -0.1180824073917699,
      0.06927268746271924,
    ]);
    const low = f.let(this.madd(
      e,
      this.constant(-2.12194440054690583e-4),
      f32x4.mul(
        f32x4.mul(z, z2),
        p,
      ),
    ));
    const main = f.let(f32x4.add(z, this.madd(z2, this.constant(-0.5), low)));
    const result = f.let(this.madd(e, this.constant(0.693359375), main));
    // inf and NaN pass through; 0 gives -inf, less than 0 NaN.
    const finite = f32x4.lt(value, this.constant(Infinity));
    f.set(result, v128.bitselect(result, value, finite));
    f.set(
      result,
      v128.bitselect(
        this.constant(-Infinity),
        result,
        f32x4.eq(value, v128.zero()),
      ),
    );
    return f.let(v128.or(result, f32x4.lt(value, v128.zero())));
  }

  /** Sine. */
  sin(x: Code): Code {
    return this.#circular(x, 0);
  }

  /** Cosine. */
  cos(x: Code): Code {
    return this.#circular(x, 1);
  }

  #circular(x: Code, quarter: 0 | 1): Code {
    const f = this.#f;
    const value = f.let(x);
    const n = f.let(f32x4.nearest(f32x4.mul(value, this.constant(2 / Math.PI))));
    const quadrant = f.let(i32x4.trunc_sat_f32x4_s(n));
    if (quarter) f.set(quadrant, i32x4.add(quadrant, f.hoist(i32x4.const(1))));
    // π/2 in three parts, the first two of which multiply n exactly.
    const r = f.let(this.madd(n, this.constant(-1.5703125), value));
    f.set(r, this.madd(n, this.constant(-4.8351287841796875e-4), r));
    f.set(r, this.madd(n, this.constant(-3.13855707645416259765625e-7), r));
    f.set(r, this.madd(n, this.constant(-6.077100628276710381e-11), r));
    const s = f.let(f32x4.mul(r, r));
    const sine = this.polynomial(s, [
      -0.1666665422556665,
      0.00833213149771146,
      -0.00019510839198936072,
    ]);
    const sin = f.let(this.madd(f32x4.mul(s, r), sine, r));
    const cosine = this.polynomial(s, [
      0.04166664565233226,
      -0.0013887306020876245,
      0.000024431202766094575,
    ]);
    const cos = f.let(
      this.madd(
        f32x4.mul(s, s),
        cosine,
        this.madd(s, this.constant(-0.5), this.constant(1)),
      ),
    );
    const odd = i32x4.ne(
      v128.and(quadrant, f.hoist(i32x4.const(1))),
      v128.zero(),
    );
    const sign = i32x4.shl(v128.and(quadrant, f.hoist(i32x4.const(2))), 30);
    return f.let(v128.xor(v128.bitselect(cos, sin, odd), sign));
  }

  /** Hyperbolic tangent. */
  tanh(x: Code): Code {
    const f = this.#f;
    const value = f.let(x);
    const size = f.let(f32x4.abs(value));
    const s = f.let(f32x4.mul(value, value));
    const p = this.polynomial(s, [
      -0.33333329613651785,
      0.13333157896179465,
      -0.05394056314032748,
      0.02166634674497214,
      -0.008091967960894944,
      0.002064664853545891,
    ]);
    const near = f.let(this.madd(f32x4.mul(value, s), p, value));
    const e = this.exp(f32x4.add(size, size));
    const one = this.constant(1);
    const far = f.let(
      f32x4.sub(one, f32x4.div(this.constant(2), f32x4.add(e, one))),
    );
    const signed = this.#withSign(far, value);
    return f.let(v128.bitselect(near, signed, f32x4.lt(size, this.constant(0.65))));
  }

  /** The error function. */
  erf(x: Code): Code {
    const f = this.#f;
    const value = f.let(x);
    const size = f.let(f32x4.abs(value));
    const s = f.let(f32x4.mul(value, value));
    const p = this.polynomial(s, [
      0.1283791664947907,
      -0.3761263228573331,
      0.11283672546270432,
      -0.026858104322280484,
      0.005197797239322963,
      -0.0008105965832136509,
      0.00008215426346916908,
    ]);
    const near = f.let(this.madd(value, p, value));
    // Beyond 4 the result is 1 in f32.
    const t = f.let(f32x4.pmin(size, this.constant(4.05)));
    // -ln(1 - erf t)
    const g = this.polynomial(t, [
      -0.00017268231020385865,
      1.1295058956202686,
      0.6333639458263349,
      0.10826269837397555,
      -0.02510906442695824,
      0.004167461184879349,
      -0.0004337868822571641,
      0.000021042258310294493,
    ]);
    const far = f.let(
      f32x4.sub(this.constant(1), this.exp(f32x4.neg(g))),
    );
    const signed = this.#withSign(far, value);
    return f.let(v128.bitselect(near, signed, f32x4.lt(size, this.constant(0.9))));
  }

  #withSign(size: Code, sign: Code): Code {
    return v128.or(
      size,
      v128.and(sign, this.#f.hoist(i32x4.const(0x80000000 | 0))),
    );
  }

  /** x^y, computed in f64: as C's powf, for negative x where y is an integer. */
  pow(x: Code, y: Code): Code {
    const f = this.#f;
    const a = f.let(x);
    const b = f.let(y);
    const size = f.let(f32x4.abs(a));
    const low = this.#power(size, b);
    const high = this.#power(
      f.let(v128.shuffle(size, size, [2, 3, 2, 3])),
      f.let(v128.shuffle(b, b, [2, 3, 2, 3])),
    );
    const result = f.let(
      v128.shuffle(f32x4.demote_f64x2_zero(low), f32x4.demote_f64x2_zero(high), [0, 1, 4, 5]),
    );
    const zero = v128.zero();
    const inf = this.constant(Infinity);
    // |x| = 0 and inf: 0 or inf, by the sign of y.
    const grows = f.let(v128.xor(f32x4.eq(size, inf), f32x4.lt(b, zero)));
    const edge = v128.or(f32x4.eq(size, zero), f32x4.eq(size, inf));
    f.set(result, v128.bitselect(v128.and(inf, grows), result, edge));
    // Negative x: NaN unless y is an integer, and the sign of x where y is odd.
    const half = f.let(f32x4.mul(b, this.constant(0.5)));
    const integer = f.let(f32x4.eq(b, f32x4.trunc(b)));
    const odd = v128.and(integer, f32x4.ne(half, f32x4.trunc(half)));
    f.set(
      result,
      v128.xor(
        result,
        v128.and(v128.and(a, f.hoist(i32x4.const(0x80000000 | 0))), odd),
      ),
    );
    const finite = v128.and(f32x4.lt(a, zero), f32x4.lt(size, inf));
    f.set(result, v128.or(result, v128.andnot(finite, integer)));
    // A NaN that came in goes out; then 1^y and x^0 are 1.
    f.set(result, v128.or(result, v128.or(f32x4.ne(a, a), f32x4.ne(b, b))));
    const one = this.constant(1);
    const unit = v128.or(f32x4.eq(a, one), f32x4.eq(b, zero));
    const minusOne = v128.and(f32x4.eq(size, one), f32x4.eq(f32x4.abs(b), inf));
    return f.let(v128.bitselect(one, result, v128.or(unit, minusOne)));
  }

  /** size^y of the two low lanes, as f64; size is positive. */
  #power(size: Code, y: Code): Local {
    const f = this.#f;
    const wide = f.let(f64x2.promote_low_f32x4(size));
    const constant = (value: number) => f.hoist(f64x2.const(value));
    // sqrt(1/2), as the bits of an f64.
    const root = f.hoist(i64x2.const(0x3fe6a09e, 0x667f3bcd));
    const shifted = f.let(i64x2.sub(wide, root));
    // The exponent, a small signed number in the high half of each lane.
    const exponents = v128.shuffle(shifted, shifted, [1, 3, 1, 3]);
    const e = f.let(f64x2.convert_low_i32x4_s(i32x4.shr_s(exponents, 20)));
    const mantissa = f.let(
      i64x2.add(v128.and(shifted, f.hoist(i64x2.const(0x000fffff, 0xffffffff | 0))), root),
    );
    const one = constant(1);
    const s = f.let(f64x2.div(f64x2.sub(mantissa, one), f64x2.add(mantissa, one)));
    const s2 = f.let(f64x2.mul(s, s));
    const series = (x: Code, coefficients: readonly number[]) =>
      coefficients.reduceRight<Code | null>(
        (sum, c) => sum === null ? constant(c) : f64x2.add(f64x2.mul(sum, x), constant(c)),
        null,
      )!;
    const atanh = series(s2, [1, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11, 1 / 13, 1 / 15]);
    const log2 = f64x2.add(e, f64x2.mul(f64x2.mul(s, constant(2 * Math.LOG2E)), atanh));
    const product = f64x2.mul(log2, f64x2.promote_low_f32x4(y));
    const t = f.let(f64x2.pmax(f64x2.pmin(product, constant(200)), constant(-200)));
    const n = f.let(f64x2.nearest(t));
    const r = f.let(f64x2.mul(f64x2.sub(t, n), constant(Math.LN2)));
    const factorials = [1, 1, 2, 6, 24, 120, 720, 5040, 40320, 362880];
    const power = f.let(series(r, factorials.map((x) => 1 / x)));
    // 2^n: n + 1023 in the exponent of each f64.
    const biased = i32x4.add(
      i32x4.trunc_sat_f64x2_s_zero(n),
      f.hoist(i32x4.const(1023)),
    );
    const scale = f.let(v128.shuffle(i32x4.shl(biased, 20), v128.zero(), [4, 0, 4, 1]));
    return f.let(f64x2.mul(power, scale));
  }
}

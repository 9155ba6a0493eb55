/**
 * WGSL functions that generated code calls where the language's own are missing, imprecise on some
 * driver or undefined for some arguments. Each names the functions it needs.
 *
 * @module
 */

/** One function of the prelude. */
interface Helper {
  readonly needs: readonly string[];
  readonly code: string;
}

// A constant expression that yields an infinity or NaN does not compile; a variable's value may.
const NONFINITE = `var<private> inf_bits: u32 = 0x7f800000u;
var<private> nan_bits: u32 = 0x7fc00000u;`;

// Taylor coefficients of erf around 0, 2/sqrt(pi) (-1)^k / (k! (2k+1)), highest first: 11 terms
// leave 1e-9 at |x| = 1.
function erfSeries(): string {
  const terms: number[] = [];
  let factorial = 1;
  for (let k = 0; k < 11; k++) {
    if (k > 0) factorial *= k;
    terms.push((2 / Math.sqrt(Math.PI)) * (k % 2 ? -1 : 1) / (factorial * (2 * k + 1)));
  }
  return terms.reduceRight(
    (tail, c) => tail === "" ? c.toExponential(9) : `(${c.toExponential(9)} + s * ${tail})`,
    "",
  );
}

const HELPERS: Readonly<Record<string, Helper>> = {
  nonfinite: { needs: [], code: NONFINITE },

  // Some drivers fold x != x to false, so NaN is recognised by its bits.
  is_nan: {
    needs: [],
    code: `fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }`,
  },

  truth: {
    needs: [],
    code: `fn truth(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) != 0u; }`,
  },

  to_i32: {
    needs: ["is_nan"],
    code: `fn to_i32(x: f32) -> i32 {
  let r = select(i32(clamp(x, -2147483648.0, 2147483520.0)), 0x7fffffff, x >= 2147483648.0);
  return select(r, 0, is_nan(x));
}`,
  },

  to_u32: {
    needs: ["is_nan"],
    code: `fn to_u32(x: f32) -> u32 {
  let r = select(u32(clamp(x, 0.0, 4294967040.0)), 0xffffffffu, x >= 4294967296.0);
  return select(r, 0u, is_nan(x));
}`,
  },

  // Rounds to nearest even, with subnormals; pack2x16float may truncate, and overflow is undefined.
  to_f16: {
    needs: [],
    code: `fn to_f16(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let sign = (bits >> 16u) & 0x8000u;
  let a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) { return sign | 0x7e00u; }
  if (a >= 0x477ff000u) { return sign | 0x7c00u; }
  if (a >= 0x38800000u) {
    return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u);
  }
  if (a < 0x33000000u) { return sign; }
  // A subnormal half: the mantissa shifted right by 14 to 24 places, rounded.
  let shift = 126u - (a >> 23u);
  let m = (a & 0x7fffffu) | 0x800000u;
  let kept = m >> shift;
  let rest = m & ((1u << shift) - 1u);
  let half = 1u << (shift - 1u);
  return sign | (kept + select(0u, 1u, rest > half || (rest == half && (kept & 1u) == 1u)));
}`,
  },

  to_bf16: {
    needs: [],
    code: `fn to_bf16(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) { return (bits >> 16u) | 0x40u; }
  return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}`,
  },

  // Subtracts the multiple of pi/2 in three parts, of which the first has 8 bits: the products are
  // nearly exact for |x| < 1e5, where hardware sin and cos have long lost all digits.
  reduce_angle: {
    needs: ["nonfinite"],
    code: `fn reduce_angle(x: f32) -> vec2<f32> {
  let k = round(x * 0.6366197723675814);
  let r = ((x - k * 1.5703125) - k * 4.837512969970703e-4) - k * 7.549789954891882e-8;
  // Beyond, the rest is not small: the result then means nothing, but stays below 1.
  if ((bitcast<u32>(x) & 0x7fffffffu) >= 0x7f800000u) { return vec2<f32>(bitcast<f32>(nan_bits), 0.0); }
  return vec2<f32>(clamp(r, -1.0, 1.0), k);
}
fn sin_part(r: f32) -> f32 {
  let s = r * r;
  return r + r * s * (-1.6666667e-1 + s * (8.3333333e-3 + s * (-1.9841270e-4 + s * 2.7557319e-6)));
}
fn cos_part(r: f32) -> f32 {
  let s = r * r;
  return 1.0 + s * (-0.5 + s * (4.1666667e-2 + s * (-1.3888889e-3 + s * (2.4801587e-5
    - s * 2.7557319e-7))));
}
fn turn(r: f32, quadrant: i32) -> f32 {
  let v = select(sin_part(r), cos_part(r), (quadrant & 1) == 1);
  return select(v, -v, (quadrant & 2) == 2);
}`,
  },

  // Drivers' log is off by 1e-7 or more absolutely, which near 1 is all of it. Here
  // log(2^e m) = e log 2 + 2 atanh((m - 1) / (m + 1)), with m between sqrt(1/2) and sqrt(2).
  log_f32: {
    needs: [],
    code: `fn log_f32(x: f32) -> f32 {
  let bits = bitcast<u32>(x);
  // Zero, subnormals, negative numbers, infinity and NaN.
  if (bits < 0x00800000u || bits >= 0x7f800000u) { return log(x); }
  let shifted = bits - 0x3f3504f3u;
  let e = f32(bitcast<i32>(shifted) >> 23u);
  let f = bitcast<f32>((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0;
  let s = f / (2.0 + f);
  let z = s * s;
  let tail = z * (0.33333333 + z * (0.2 + z * (0.14285714 + z * (0.11111111 + z * 0.090909091))));
  // The first part of log 2 has 9 bits, so that its product with e is exact.
  return e * 0.693359375 + (2.0 * s + (2.0 * s * tail - e * 2.12194440e-4));
}`,
  },

  sin_f32: {
    needs: ["reduce_angle", "to_i32"],
    code: `fn sin_f32(x: f32) -> f32 { let p = reduce_angle(x); return turn(p.x, to_i32(p.y)); }`,
  },

  cos_f32: {
    needs: ["reduce_angle", "to_i32"],
    code:
      `fn cos_f32(x: f32) -> f32 { let p = reduce_angle(x); return turn(p.x, to_i32(p.y) + 1); }`,
  },

  // Some drivers' tanh is inf / inf for large arguments, and loses digits for small ones.
  tanh_f32: {
    needs: ["is_nan"],
    code: `fn tanh_f32(x: f32) -> f32 {
  let a = abs(x);
  let s = x * x;
  let near = x + x * s * (-0.33333333 + s * (0.13333333 + s * (-5.3968254e-2
    + s * (2.1869489e-2 - s * 8.8632355e-3))));
  let far = sign(x) * (1.0 - 2.0 / (exp(2.0 * min(a, 20.0)) + 1.0));
  return select(select(far, near, a < 0.35), x, is_nan(x));
}`,
  },

  // A Taylor series below 1; above, Abramowitz and Stegun 7.1.26, off by 1.5e-7 at most.
  erf_f32: {
    needs: ["is_nan"],
    code: `fn erf_f32(x: f32) -> f32 {
  let a = min(abs(x), 6.0);
  let t = 1.0 / (1.0 + 0.3275911 * a);
  let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741
    + t * (-1.453152027 + t * 1.061405429))));
  let far = sign(x) * (1.0 - p * exp(-a * a));
  let s = min(x * x, 1.0);
  let near = x * ${erfSeries()};
  return select(select(far, near, a < 1.0), x, is_nan(x));
}`,
  },

  // Two and one half are exact; a negative base has a power where the exponent is whole.
  pow_f32: {
    needs: ["nonfinite", "is_nan"],
    code: `fn pow_f32(x: f32, y: f32) -> f32 {
  if (y == 0.0 || (x == 1.0 && !is_nan(x))) { return 1.0; }
  if (is_nan(x) || is_nan(y)) { return bitcast<f32>(nan_bits); }
  if (y == 1.0) { return x; }
  if (y == 2.0) { return x * x; }
  if (y == -1.0) { return 1.0 / x; }
  let whole = floor(y) == y;
  // Floats of 2^24 and more are even.
  let odd = whole && abs(y) < 16777216.0 && (i32(clamp(y, -16777216.0, 16777216.0)) & 1) == 1;
  let negative = (bitcast<u32>(x) >> 31u) == 1u;
  var r: f32;
  if (x == 0.0) {
    r = select(bitcast<f32>(inf_bits), 0.0, y > 0.0);
  } else if (y == 0.5 && !negative) {
    return sqrt(x);
  } else {
    if (negative && !whole) { return bitcast<f32>(nan_bits); }
    r = exp2(y * log2(abs(x)));
  }
  return select(r, -r, negative && odd);
}`,
  },
};

/** The functions `names` and all they need, each once, in order of need. */
export function preludeOf(names: Iterable<string>): string {
  const done = new Set<string>();
  const out: string[] = [];
  const add = (name: string): void => {
    if (done.has(name)) return;
    done.add(name);
    HELPERS[name].needs.forEach(add);
    out.push(HELPERS[name].code);
  };
  for (const name of names) add(name);
  return out.join("\n");
}

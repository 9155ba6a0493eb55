/**
 * The normal distribution's mass between two points.
 *
 * @module
 */

/** The standard normal's mass in [from, to], to about 12 digits. */
export function normalMass(from: number, to: number): number {
  // Where the density hardly bends, width times density: a difference would lose its digits.
  if (to - from < 1e-4) {
    const middle = (from + to) / 2;
    return (to - from) * Math.exp(-middle * middle / 2) / Math.sqrt(2 * Math.PI);
  }
  // Both above 0: the mirror image, since 1 - 1 has no digits left.
  if (from > 0) return below(-from) - below(-to);
  return below(to) - below(from);
}

/** The mass below z. */
function below(z: number): number {
  const x = Math.abs(z) / Math.SQRT2;
  const tail = x < 2 ? (1 - erf(x)) / 2 : erfcFar(x) / 2;
  return z > 0 ? 1 - tail : tail;
}

/** erf by its series of positive terms (Abramowitz and Stegun 7.1.6). */
function erf(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; term > 1e-17 * sum; n++) {
    term *= 2 * x * x / (2 * n + 1);
    sum += term;
  }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

/** 1 - erf for x of 2 and more, by its continued fraction (Abramowitz and Stegun 7.1.14). */
function erfcFar(x: number): number {
  let fraction = x;
  for (let n = 60; n >= 1; n--) fraction = x + n / 2 / fraction;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction;
}

import { FLOATS } from "../dtype.ts";
import { apply } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";

/** The error function, 2/√π · ∫₀ˣ exp(-t²) dt. */
export const erf: PointwiseFunction = pointwise({
  name: "erf",
  expr: ([x]) => apply("erf", x),
  gradient: ({ g, inputs: [x] }) => [g.mul(x.square().neg().exp()).mul(2 / Math.sqrt(Math.PI))],
  reference: erfReference,
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 16,
});

/** The error function by its series and continued fraction, to about 1e-15. */
export function erfReference(x: number): number {
  const a = Math.abs(x);
  if (a < 2.5) {
    let term = a;
    let sum = a;
    for (let n = 1; n < 60; n++) {
      term *= -a * a / n;
      sum += term / (2 * n + 1);
    }
    return Math.sign(x) * sum * 2 / Math.sqrt(Math.PI);
  }
  let f = 0;
  for (let k = 60; k > 0; k--) f = k / 2 / (a + f);
  return Math.sign(x) * (1 - Math.exp(-a * a) / Math.sqrt(Math.PI) / (a + f));
}

import { FLOATS } from "../dtype.ts";
import { apply, constant, type Expr } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { erfReference } from "./erf.ts";

const f = (value: number): Expr => constant("f32", value);
const SQRT_2_OVER_PI = Math.sqrt(2 / Math.PI);
const CUBIC = 0.044715;

/** x · Φ(x), with Φ the normal distribution: by erf, exactly. */
const geluExact: PointwiseFunction = pointwise({
  name: "gelu",
  expr: ([x]) => {
    const phi = apply("add", f(1), apply("erf", apply("mul", x, f(Math.SQRT1_2))));
    return apply("mul", apply("mul", f(0.5), x), phi);
  },
  gradient: ({ g, inputs: [x] }) => {
    const phi = x.mul(Math.SQRT1_2).erf().add(1).mul(0.5);
    const density = x.square().mul(-0.5).exp().mul(1 / Math.sqrt(2 * Math.PI));
    return [g.mul(phi.add(x.mul(density)))];
  },
  reference: (x) => 0.5 * x * (1 + erfReference(x * Math.SQRT1_2)),
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 20,
});

/** 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 x³))). */
const geluTanh: PointwiseFunction = pointwise({
  name: "geluTanh",
  expr: ([x]) => {
    const cube = apply("mul", x, apply("mul", x, x));
    const inner = apply("mul", f(SQRT_2_OVER_PI), apply("add", x, apply("mul", f(CUBIC), cube)));
    return apply("mul", apply("mul", f(0.5), x), apply("add", f(1), apply("tanh", inner)));
  },
  gradient: ({ g, inputs: [x] }) => {
    const t = x.add(x.mul(x).mul(x).mul(CUBIC)).mul(SQRT_2_OVER_PI).tanh();
    const slope = x.square().mul(3 * CUBIC).add(1).mul(SQRT_2_OVER_PI);
    const bend = x.mul(t.square().neg().add(1)).mul(slope);
    return [g.mul(t.add(1).add(bend).mul(0.5))];
  },
  reference: (x) => 0.5 * x * (1 + Math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x ** 3))),
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 20,
});

/**
 * Gaussian error linear unit (Hendrycks and Gimpel 2016): exact (`none`), or its `tanh`
 * approximation, section 2, which GPT-2 uses.
 */
export function gelu(x: Tensor, approximate: "none" | "tanh" = "none"): Tensor {
  return approximate === "tanh" ? geluTanh(x) : geluExact(x);
}

/** Both forms' ops, for conformance. */
export const geluOps: readonly PointwiseFunction[] = [geluExact, geluTanh];

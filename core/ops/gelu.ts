import { FLOATS } from "../dtype.ts";
import { apply, constant, type Expr } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { erfReference } from "./erf.ts";
import { sigmoidOf } from "./sigmoid.ts";

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

/** 2·√(2/π)·(x + 0.044715 x³), and its slope: (1 + tanh(y)) / 2 is sigmoid(2 y). */
const A = 2 * SQRT_2_OVER_PI;
const B = A * CUBIC;
const argumentOf = (x: Expr): Expr =>
  apply("mul", x, apply("add", f(A), apply("mul", f(B), apply("mul", x, x))));
const slopeOf = (x: Expr): Expr => apply("add", f(A), apply("mul", f(3 * B), apply("mul", x, x)));

/** 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 x³))), by a sigmoid. */
const geluTanh: PointwiseFunction = pointwise({
  name: "geluTanh",
  expr: ([x]) => apply("mul", x, sigmoidOf(argumentOf(x))),
  gradient: ({ g, inputs: [x] }) => [geluTanhGradient(x, g)],
  reference: (x) => 0.5 * x * (1 + Math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x ** 3))),
  domain: [[-3, 3]],
  dtypes: FLOATS,
  cost: 20,
});

/** g · s · (1 + x · (1 - s) · slope) with s the sigmoid: one kernel that reads x and g alone. */
const geluTanhGradient: PointwiseFunction = pointwise({
  name: "geluTanhGradient",
  expr: ([x, g]) => {
    const s = sigmoidOf(argumentOf(x));
    const bend = apply("mul", apply("mul", x, slopeOf(x)), apply("sub", f(1), s));
    return apply("mul", g, apply("mul", s, apply("add", f(1), bend)));
  },
  gradient: ({ g: gg, inputs: [x, g] }) => {
    const square = x.square();
    const s = x.mul(square.mul(B).add(A)).sigmoid();
    const d = s.mul(s.neg().add(1)); // s'
    const slope = square.mul(3 * B).add(A);
    const first = d.mul(slope).mul(x.mul(slope).mul(s.mul(-2).add(1)).add(2));
    const second = first.add(d.mul(square).mul(6 * B));
    return [gg.mul(g).mul(second), geluTanhGradient(x, gg)];
  },
  reference: (x, g) => {
    const t = Math.tanh(SQRT_2_OVER_PI * (x + CUBIC * x ** 3));
    const slope = SQRT_2_OVER_PI * (1 + 3 * CUBIC * x ** 2);
    return g * 0.5 * (1 + t + x * (1 - t * t) * slope);
  },
  domain: [[-3, 3], [-2, 2]],
  dtypes: FLOATS,
  cost: 25,
});

/**
 * Gaussian error linear unit (Hendrycks and Gimpel 2016): exact (`none`), or its `tanh`
 * approximation, section 2, which GPT-2 uses.
 */
export function gelu(x: Tensor, approximate: "none" | "tanh" = "none"): Tensor {
  return approximate === "tanh" ? geluTanh(x) : geluExact(x);
}

/** All of its ops, for conformance. */
export const geluOps: readonly PointwiseFunction[] = [geluExact, geluTanh, geluTanhGradient];

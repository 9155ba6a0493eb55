import { FLOATS } from "../dtype.ts";
import { apply, constant } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { sigmoidOf } from "./sigmoid.ts";

/** x · sigmoid(x) (Elfwing et al. 2018, "Sigmoid-weighted linear units"). */
export const silu: PointwiseFunction = pointwise({
  name: "silu",
  expr: ([x]) => apply("mul", x, sigmoidOf(x)),
  gradient: ({ g, inputs: [x] }) => [siluGradient(x, g)],
  reference: (x) => x / (1 + Math.exp(-x)),
  domain: [[-4, 4]],
  dtypes: FLOATS,
  cost: 15,
});

/** g · s · (1 + x · (1 - s)) with s = sigmoid(x): one kernel that reads x and g alone. */
export const siluGradient: PointwiseFunction = pointwise({
  name: "siluGradient",
  expr: ([x, g]) => {
    const one = constant("f32", 1);
    const s = sigmoidOf(x);
    const inner = apply("add", one, apply("mul", x, apply("sub", one, s)));
    return apply("mul", g, apply("mul", s, inner));
  },
  gradient: ({ g: gg, inputs: [x, g] }) => {
    const s = x.sigmoid();
    const d = s.mul(s.neg().add(1)); // s'
    const second = d.mul(x.mul(s.mul(-2).add(1)).add(2));
    return [gg.mul(g).mul(second), siluGradient(x, gg)];
  },
  reference: (x, g) => {
    const s = 1 / (1 + Math.exp(-x));
    return g * s * (1 + x * (1 - s));
  },
  domain: [[-4, 4], [-2, 2]],
  dtypes: FLOATS,
  cost: 20,
});

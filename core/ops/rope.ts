import { customFunction } from "../autograd.ts";
import { FLOATS } from "../dtype.ts";
import { apply, constant, type Expr } from "../expr.ts";
import { pointwise, type PointwiseFunction } from "../op.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";

/**
 * Rotary positions (Su et al. 2021, "RoFormer", section 3.2.2), in the half-split form of Hugging
 * Face: the pair (x[i], x[i + D/2]) is turned by the angle of position and i.
 *
 * `x` is [..., T, D] with D even; `cos` and `sin` broadcast to [..., T, D/2] and get no gradient.
 */
export function rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
  const d = x.shape[x.rank - 1];
  if (d % 2 !== 0 || cos.shape[cos.rank - 1] !== d / 2) {
    throw new RangeError(
      `rope: needs an even last size and angles for half of it, got ${show(x.shape)} and ${
        show(cos.shape)
      }`,
    );
  }
  const c = cos.detach();
  const s = sin.detach();
  return customFunction([x], ([x]) => turn(x, c, s), ({ g }) => [rope(g, c, s.neg())]);
}

function turn(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
  const half = x.shape[x.rank - 1] / 2;
  const halves = x.reshape([...x.shape.slice(0, -1), 2, half]); // [..., T, 2, D/2]
  // The other half is the same view back to front: b beside a, a beside b. No element is masked.
  const part = iota([2, 1], 0, "f32", x.device);
  return turned(halves, halves.flip(-2), part, cos.unsqueeze(-2), sin.unsqueeze(-2))
    .reshape(x.shape);
}

const f = (value: number): Expr => constant("f32", value);

/**
 * x · cos ± other · sin, minus for the first half (`part` 0), plus for the second (`part` 1). Its
 * gradient is that of {@linkcode rope}.
 */
const turned: PointwiseFunction = pointwise({
  name: "rope",
  expr: ([x, other, part, cos, sin]) => {
    const sign = apply("sub", apply("mul", part, f(2)), f(1));
    return apply("add", apply("mul", x, cos), apply("mul", apply("mul", other, sign), sin));
  },
  gradient: null,
  reference: (x, other, part, cos, sin) => x * cos + other * (2 * part - 1) * sin,
  domain: [[-2, 2], [-2, 2], [0, 1], [-1, 1], [-1, 1]],
  dtypes: FLOATS,
  cost: 5,
});

/** The op itself. */
export const ropeFunction: PointwiseFunction = turned;

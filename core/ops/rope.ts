import { customFunction } from "../autograd.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { concatenate } from "./concatenate.ts";

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
  const a = x.slice(-1, 0, half);
  const b = x.slice(-1, half);
  return concatenate([a.mul(cos).sub(b.mul(sin)), b.mul(cos).add(a.mul(sin))], -1);
}

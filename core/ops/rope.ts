import { customFunction } from "../autograd.ts";
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
  const split = (t: Tensor, parts: number): Tensor =>
    t.reshape([...t.shape.slice(0, -1), parts, half]);
  const halves = split(x, 2); // [..., T, 2, D/2]
  // The other half is the same view back to front: -b beside a, a beside b. No element is masked.
  const sign = iota([2, 1], 0, "f32", x.device).mul(2).sub(1);
  const other = halves.flip(-2).mul(sign);
  const c = cos.unsqueeze(-2); // [..., T, 1, D/2]
  const s = sin.unsqueeze(-2);
  return halves.mul(c).add(other.mul(s)).reshape(x.shape);
}

import { type RandomOptions, uniform } from "../random.ts";
import type { Tensor } from "../tensor.ts";
import { where } from "./where.ts";

/**
 * Each element is 0 with probability `p`, else divided by 1 - p (Srivastava et al. 2014).
 *
 * Throws where `p` is not in [0, 1).
 */
export function dropout(x: Tensor, p: number, options: RandomOptions = {}): Tensor {
  if (!(p >= 0 && p < 1)) throw new RangeError(`dropout: needs p in [0, 1), got ${p}`);
  if (p === 0) return x;
  return where(uniform(x.shape, options).ge(p), x.mul(1 / (1 - p)), 0);
}

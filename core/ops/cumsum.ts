import { axisOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/**
 * Running sum along `axis`: element i is the sum of those up to i, in log₂ n passes that each add the
 * partial sum 2ᵏ places before (Hillis and Steele 1986, "Data parallel algorithms").
 */
export function cumsum(x: Tensor, axis = -1): Tensor {
  const dim = axisOf("cumsum", axis, x.shape);
  const n = x.shape[dim];
  let y = x;
  for (let step = 1; step < n; step *= 2) y = y.add(y.slice(dim, 0, n - step).pad(dim, step, 0));
  return y;
}

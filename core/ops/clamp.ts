import type { Tensor } from "../tensor.ts";

/** Limits to [low, high]; the gradient is 0 outside. Throws where low is above high. */
export function clamp(x: Tensor, low: number, high: number): Tensor {
  if (!(low <= high)) throw new RangeError(`clamp: needs low ≤ high, got ${low} and ${high}`);
  return x.maximum(low).minimum(high);
}

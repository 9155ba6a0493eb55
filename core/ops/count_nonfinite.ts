import type { Tensor } from "../tensor.ts";

/** The largest finite f32. */
const LARGEST = 3.4028234663852886e38;

/** How many elements are NaN or infinite: f32 []. */
export function countNonfinite(x: Tensor): Tensor {
  return x.isnan().or(x.abs().gt(LARGEST)).to("f32").sum();
}

import { axesOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { customFunction } from "../autograd.ts";
import { where } from "./where.ts";

/** log Σ exp(x) along `axes` (default: all), shifted by the maximum so that nothing overflows. */
export function logsumexp(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  const dims = axesOf("logsumexp", axes, x.shape);
  const kept = customFunction(
    [x],
    ([x]) => {
      const max = x.max(dims, true);
      // A row of -∞ alone must not become -∞ - -∞.
      const shift = where(max.eq(-Infinity), 0, max);
      return x.sub(shift).exp().sum(dims, true).log().add(shift);
    },
    ({ g, inputs: [x], out }) => [g.mul(x.sub(out).exp())],
  );
  return keepDims ? kept : kept.reshape(x.shape.filter((_, d) => !dims.includes(d)));
}

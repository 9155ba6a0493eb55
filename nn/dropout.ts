/**
 * Dropout.
 *
 * @module
 */

import { dropout, type Tensor } from "../core/mod.ts";
import { Module } from "./module.ts";

/** In training, sets elements to 0 with probability `p` and scales the others by `1 / (1 - p)`. */
export class Dropout extends Module {
  /** Probability of 0. */
  p: number;

  /** Throws a `RangeError` where `p` is not in [0, 1). */
  constructor(p = 0.5) {
    super();
    if (!(p >= 0 && p < 1)) throw new RangeError(`Dropout: needs p in [0, 1), got ${p}`);
    this.p = p;
  }

  /** The shape stays. */
  forward(x: Tensor): Tensor {
    return this.training && this.p > 0 ? dropout(x, this.p) : x;
  }
}

/**
 * Normalisation layers.
 *
 * @module
 */

import { layerNorm, ones, rmsNorm, type Tensor, zeros } from "../core/mod.ts";
import { Module, Parameter } from "./module.ts";

/** `x / √(mean(x²) + ε) · weight` over the last dimension (Zhang and Sennrich 2019). */
export class RMSNorm extends Module {
  /** Factor of each element, [D]; starts as 1. */
  weight: Parameter;
  /** ε, added to the mean square. */
  eps: number;

  /** Over a last dimension of `size`. */
  constructor(size: number, eps = 1e-6) {
    super();
    this.weight = new Parameter(ones([size]));
    this.eps = eps;
  }

  /** [..., D] -> [..., D] */
  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps);
  }
}

/** `(x - mean) / √(var + ε) · weight + bias` over the last dimension (Ba, Kiros and Hinton 2016). */
export class LayerNorm extends Module {
  /** Factor of each element, [D]; starts as 1. */
  weight: Parameter;
  /** Added to each element, [D]; starts as 0. Or null. */
  bias: Parameter | null;
  /** ε, added to the variance. */
  eps: number;

  /** Over a last dimension of `size`. */
  constructor(size: number, eps = 1e-5, bias = true) {
    super();
    this.weight = new Parameter(ones([size]));
    this.bias = bias ? new Parameter(zeros([size])) : null;
    this.eps = eps;
  }

  /** [..., D] -> [..., D] */
  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps);
  }
}

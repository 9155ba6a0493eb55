/**
 * The linear layer, and the one of GPT-2 that holds its weight the other way round.
 *
 * @module
 */

import { normal, type Tensor, uniform, zeros } from "../core/mod.ts";
import { Module, Parameter } from "./module.ts";
import { layerProduct } from "./quantized.ts";

/** Options of {@linkcode Linear}. */
export interface LinearOptions {
  /** Whether there is a bias, or the bias to take over. Default true. */
  readonly bias?: boolean | Parameter;
  /** The weight to take over, [out, in]. */
  readonly weight?: Parameter;
}

/**
 * `y = x Wᵀ + b`, with W [out, in] and b [out].
 *
 * W and b start uniform in ±1/√in, as PyTorch's.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { Linear } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const layer = new Linear(3, 2);
 * console.log(layer.forward(tensor([[1, 2, 3]])).shape); // [1, 2]
 * ```
 */
export class Linear extends Module {
  /** W, [out, in] */
  weight: Parameter;
  /** b, [out], or null where there is none. */
  bias: Parameter | null;

  /** A layer from `inFeatures` to `outFeatures`. */
  constructor(inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super();
    const bound = 1 / Math.sqrt(inFeatures);
    const start = (shape: number[]): Parameter =>
      new Parameter(uniform(shape, { low: -bound, high: bound }));
    const { bias = true } = options;
    this.weight = options.weight ?? start([outFeatures, inFeatures]);
    this.bias = bias === true ? start([outFeatures]) : bias === false ? null : bias;
  }

  /** Size of the input's last dimension. */
  get inFeatures(): number {
    return this.weight.shape[1];
  }
  /** Size of the output's last dimension. */
  get outFeatures(): number {
    return this.weight.shape[0];
  }

  /**
   * [..., in] -> [..., out]
   *
   * Throws a `RangeError` where the input's last size is another.
   */
  forward(x: Tensor): Tensor {
    if (x.shape.at(-1) !== this.inFeatures) {
      throw new RangeError(
        `Linear: needs [..., ${this.inFeatures}], got [${x.shape.join(", ")}]`,
      );
    }
    const y = layerProduct(x, this.weight);
    return this.bias ? y.add(this.bias) : y;
  }

  /** A layer whose output starts as 0: W and b are 0. */
  static zero(inFeatures: number, outFeatures: number, bias = false): Linear {
    return new Linear(inFeatures, outFeatures, {
      weight: new Parameter(zeros([outFeatures, inFeatures])),
      bias: bias ? new Parameter(zeros([outFeatures])) : false,
    });
  }
}

/**
 * `y = x W + b`, with W [in, out] and b [out]: GPT-2's linear layer, `Conv1D` of Hugging Face.
 *
 * W starts as N(0, 0.02), b as 0.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { Conv1D } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const layer = new Conv1D(3, 2);
 * console.log(layer.forward(tensor([[1, 2, 3]])).shape); // [1, 2]
 * ```
 */
export class Conv1D extends Module {
  /** W, [in, out] */
  weight: Parameter;
  /** b, [out] */
  bias: Parameter;

  /** A layer from `inFeatures` to `outFeatures`; weight and bias may be given to take over. */
  constructor(
    inFeatures: number,
    outFeatures: number,
    options: { readonly weight?: Parameter; readonly bias?: Parameter } = {},
  ) {
    super();
    this.weight = options.weight ??
      new Parameter(normal([inFeatures, outFeatures], { std: 0.02 }));
    this.bias = options.bias ?? new Parameter(zeros([outFeatures]));
  }

  /** Size of the input's last dimension. */
  get inFeatures(): number {
    return this.weight.shape[0];
  }
  /** Size of the output's last dimension. */
  get outFeatures(): number {
    return this.weight.shape[1];
  }

  /**
   * [..., in] -> [..., out]
   *
   * Throws a `RangeError` where the input's last size is another.
   */
  forward(x: Tensor): Tensor {
    if (x.shape.at(-1) !== this.inFeatures) {
      throw new RangeError(
        `Conv1D: needs [..., ${this.inFeatures}], got [${x.shape.join(", ")}]`,
      );
    }
    return layerProduct(x, this.weight, true).add(this.bias);
  }
}

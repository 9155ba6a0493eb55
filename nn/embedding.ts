/**
 * The embedding layer.
 *
 * @module
 */

import { embedding, normal, type Tensor } from "../core/mod.ts";
import { Module, Parameter } from "./module.ts";

/**
 * A table of vectors, [V, D], by index. It starts as N(0, 1), as PyTorch's.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { Embedding } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const table = new Embedding(10, 4);
 * console.log(table.forward(tensor([[1, 2, 3]], { dtype: "i32" })).shape); // [1, 3, 4]
 * ```
 */
export class Embedding extends Module {
  /** The vectors, [V, D] */
  weight: Parameter;

  /** A table of `count` vectors of `size`, or the table to take over. */
  constructor(count: number, size: number, weight?: Parameter) {
    super();
    this.weight = weight ?? new Parameter(normal([count, size]));
  }

  /** i32 [...] -> [..., D]. An index outside [0, V) gives no defined vector. */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}

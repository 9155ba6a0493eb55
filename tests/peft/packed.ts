/**
 * What the tests of packed weights share.
 *
 * @module
 */

import { Linear, Module, type Parameter, QuantizedParameter } from "@graft/ml/nn";

/** The largest difference. */
export function apart(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
}

/** The packed weights of a model by their keys. */
export function packedOf(model: Module): Map<string, QuantizedParameter> {
  return new Map(
    model.namedParameters().flatMap(([name, p]) =>
      p instanceof QuantizedParameter ? [[name, p]] : []
    ),
  );
}

/** One layer, so that a golden matrix is all there is. */
export class One extends Module {
  /** The layer. */
  layer: Linear;
  constructor(weight: Parameter) {
    super();
    this.layer = new Linear(weight.shape[1], weight.shape[0], { weight, bias: false });
  }
}

/**
 * Stochastic gradient descent.
 *
 * @module
 */

import type { Variable } from "../core/mod.ts";
import {
  atLeastZero,
  belowOne,
  Optimizer,
  type ParameterGroup,
  type UpdateContext,
} from "./optimizer.ts";

/** Options of {@linkcode SGD}. */
export interface SGDOptions {
  /** Learning rate. Default 1e-3. */
  readonly lr?: number;
  /** Share of the last direction that goes on. Default 0. */
  readonly momentum?: number;
  /** Share of the gradient that momentum leaves out. Default 0. */
  readonly dampening?: number;
  /** Whether to look ahead (Sutskever et al. 2013). Default false. */
  readonly nesterov?: boolean;
  /** Factor of an L2 penalty. Default 0. */
  readonly weightDecay?: number;
}

/**
 * `b ← μ b + (1 - d) g`, `p ← p - lr b`, with momentum μ and dampening d; the first b is g. The rules
 * are PyTorch's.
 *
 * @example
 * ```ts
 * import { init, tensor, Variable } from "@graft/ml";
 * import { SGD } from "@graft/ml/optim";
 *
 * await init({ device: "cpu" });
 * const w = new Variable(tensor([1, 2]), { requiresGrad: true });
 * const optimizer = new SGD([w], { lr: 0.25 });
 * w.square().sum().backward();
 * await optimizer.step();
 * console.log(await w.data()); // Float32Array [0.5, 1]
 * ```
 */
export class SGD extends Optimizer {
  readonly #momentum: number;
  readonly #dampening: number;
  readonly #nesterov: boolean;

  /** Throws a `RangeError` on an option out of range, and as {@linkcode Optimizer} does. */
  constructor(
    parameters: readonly Variable[] | readonly ParameterGroup[],
    options: SGDOptions = {},
  ) {
    const { lr = 1e-3, momentum = 0, dampening = 0, nesterov = false, weightDecay = 0 } = options;
    super(parameters, lr, weightDecay);
    this.#momentum = atLeastZero("SGD", "momentum", momentum);
    this.#dampening = dampening === 0 ? 0 : belowOne("SGD", "dampening", dampening);
    this.#nesterov = nesterov;
    if (nesterov && (momentum === 0 || dampening !== 0)) {
      throw new RangeError(
        `SGD: nesterov needs a momentum above 0 and no dampening, got ${momentum} and ${dampening}`,
      );
    }
  }

  /** Records the update of one parameter. */
  protected override update({ parameter, gradient, group, step, state, set }: UpdateContext): void {
    const g = group.weightDecay === 0 ? gradient : gradient.add(parameter.mul(group.weightDecay));
    let direction = g;
    if (this.#momentum !== 0) {
      const buffer = state("momentum_buffer");
      // Dampening spares the first step, as PyTorch's. A number, so that step 1 is step 2's plan.
      const fresh = step === 1 ? 1 : 1 - this.#dampening;
      const b = set(buffer, buffer.mul(this.#momentum).add(g.mul(fresh)));
      direction = this.#nesterov ? g.add(b.mul(this.#momentum)) : b;
    }
    set(parameter, parameter.sub(direction.mul(group.lr)));
  }
}

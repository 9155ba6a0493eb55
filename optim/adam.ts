/**
 * Adam and AdamW.
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

/** Options of {@linkcode Adam} and {@linkcode AdamW}. */
export interface AdamOptions {
  /** Learning rate. Default 1e-3. */
  readonly lr?: number;
  /** Decay of the two moments, the running means of g and g². Default [0.9, 0.999]. */
  readonly betas?: readonly [number, number];
  /** Added to the denominator, √v, so that it is not 0. Default 1e-8. */
  readonly eps?: number;
  /** Adam: factor of an L2 penalty, default 0. AdamW: decay, default 0.01. */
  readonly weightDecay?: number;
}

/**
 * Adam (Kingma and Ba 2015, algorithm 1), with PyTorch's rules and defaults. Both moments are corrected
 * for their start at 0.
 */
export class Adam extends Optimizer {
  readonly #betas: readonly [number, number];
  readonly #eps: number;

  /** Throws a `RangeError` on an option out of range, and as {@linkcode Optimizer} does. */
  constructor(
    parameters: readonly Variable[] | readonly ParameterGroup[],
    options: AdamOptions = {},
  ) {
    const { lr = 1e-3, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0 } = options;
    super(parameters, lr, weightDecay);
    const name = new.target.name;
    this.#betas = [belowOne(name, "betas[0]", betas[0]), belowOne(name, "betas[1]", betas[1])];
    this.#eps = atLeastZero(name, "eps", eps);
  }

  /** Whether the decay acts on the parameter itself rather than through the gradient. */
  protected get decoupled(): boolean {
    return false;
  }

  /** Records the update of one parameter. */
  protected override update({ parameter, gradient, group, step, state, set }: UpdateContext): void {
    const { lr, weightDecay } = group;
    const [beta1, beta2] = this.#betas;
    const penalty = weightDecay !== 0 && !this.decoupled;
    const g = penalty ? gradient.add(parameter.mul(weightDecay)) : gradient;
    const first = state("exp_avg"), second = state("exp_avg_sq");
    const m = set(first, first.mul(beta1).add(g.mul(1 - beta1)));
    const v = set(second, second.mul(beta2).add(g.square().mul(1 - beta2)));
    // The corrections are numbers of this step: data of the plan, not structure.
    const stepSize = lr / (1 - beta1 ** step);
    const denominator = v.sqrt().div(Math.sqrt(1 - beta2 ** step)).add(this.#eps);
    const decayed = this.decoupled ? parameter.mul(1 - lr * weightDecay) : parameter;
    set(parameter, decayed.sub(m.div(denominator).mul(stepSize)));
  }
}

/**
 * Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), with PyTorch's rules and
 * defaults: `p ← p (1 - lr λ)` before Adam's update.
 *
 * @example
 * ```ts
 * import { init, tensor, Variable } from "@graft/ml";
 * import { AdamW } from "@graft/ml/optim";
 *
 * await init({ device: "cpu" });
 * const w = new Variable(tensor([1, 2]), { requiresGrad: true });
 * const optimizer = new AdamW([w], { lr: 0.1, weightDecay: 0 });
 * w.square().sum().backward();
 * await optimizer.step();
 * console.log(await w.data()); // about [0.9, 1.9]
 * ```
 */
export class AdamW extends Adam {
  /** Throws a `RangeError` on an option out of range, and as {@linkcode Optimizer} does. */
  constructor(
    parameters: readonly Variable[] | readonly ParameterGroup[],
    options: AdamOptions = {},
  ) {
    super(parameters, { weightDecay: 0.01, ...options });
  }

  /** The decay acts on the parameter itself. */
  protected override get decoupled(): boolean {
    return true;
  }
}

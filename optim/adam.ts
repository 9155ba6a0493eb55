/**
 * Adam and AdamW.
 *
 * @module
 */

import type { Device, Tensor, Variable } from "../core/mod.ts";
import { scalar } from "../core/op.ts";
import { adamStep, runningMean, runningMeanOfSquares } from "../core/ops/adam.ts";
import {
  atLeastZero,
  belowOne,
  Optimizer,
  type OptimizerGroup,
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

/** The numbers of a step, as tensors of shape []. */
type Numbers = Readonly<
  Record<
    "beta1" | "rest1" | "beta2" | "rest2" | "kept" | "rate" | "correction" | "epsilon",
    Tensor
  >
>;

/**
 * Adam (Kingma and Ba 2015, algorithm 1), with PyTorch's rules and defaults. Both moments are corrected
 * for their start at 0.
 */
export class Adam extends Optimizer {
  readonly #betas: readonly [number, number];
  readonly #eps: number;
  #last: {
    readonly step: number;
    readonly lr: number;
    readonly weightDecay: number;
    readonly device: Device;
    readonly numbers: Numbers;
  } | null = null;

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
    const { weightDecay } = group;
    const penalty = weightDecay !== 0 && !this.decoupled;
    const g = penalty ? gradient.add(parameter.mul(weightDecay)) : gradient;
    const { beta1, rest1, beta2, rest2, kept, rate, correction, epsilon } = this.#numbers(
      group,
      step,
      parameter.device,
    );
    const first = state("exp_avg"), second = state("exp_avg_sq");
    const m = set(first, runningMean(first, g, beta1, rest1));
    const v = set(second, runningMeanOfSquares(second, g, beta2, rest2));
    set(parameter, adamStep(parameter, m, v, kept, rate, correction, epsilon));
  }

  /** The numbers of a group's step, which are data of a plan, not structure: made once for all parameters. */
  #numbers({ lr, weightDecay }: OptimizerGroup, step: number, device: Device): Numbers {
    const last = this.#last;
    if (
      last?.step === step && last.lr === lr && last.weightDecay === weightDecay &&
      last.device === device
    ) return last.numbers;
    const [beta1, beta2] = this.#betas;
    const number = (value: number): Tensor => scalar(value, "f32", device);
    const numbers: Numbers = {
      beta1: number(beta1),
      rest1: number(1 - beta1),
      beta2: number(beta2),
      rest2: number(1 - beta2),
      kept: number(this.decoupled ? 1 - lr * weightDecay : 1),
      rate: number(lr / (1 - beta1 ** step)),
      correction: number(Math.sqrt(1 - beta2 ** step)),
      epsilon: number(this.#eps),
    };
    this.#last = { step, lr, weightDecay, device, numbers };
    return numbers;
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

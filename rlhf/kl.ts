/**
 * How strongly PPO is held to the reference policy: the coefficient β of the KL penalty.
 *
 * @module
 */

/** What a controller goes on from. */
export interface KLState {
  /** β. */
  readonly coefficient: number;
}

/** The coefficient β of the KL penalty, and how it follows the KL that is seen. */
export interface KLController {
  /** β, at least 0. */
  readonly coefficient: number;
  /**
   * Tells what came of a batch: its mean KL in nats an answer, and its number of answers.
   *
   * Throws a `RangeError` where the KL is not finite.
   */
  update(kl: number, answers: number): void;
  /** What a checkpoint holds. */
  state(): KLState;
  /** Goes on from a state. */
  load(state: KLState): void;
}

/** A coefficient that stays. */
export class FixedKL implements KLController {
  #coefficient: number;

  /** Throws a `RangeError` where the coefficient is negative or not finite. */
  constructor(coefficient = 0.05) {
    this.#coefficient = checkCoefficient("FixedKL", coefficient);
  }

  /** β. */
  get coefficient(): number {
    return this.#coefficient;
  }

  /** Changes nothing. Throws a `RangeError` where the KL is not finite. */
  update(kl: number, _answers: number): void {
    checkKL("FixedKL", kl);
  }

  /** What a checkpoint holds. */
  state(): KLState {
    return { coefficient: this.#coefficient };
  }

  /** Goes on from a state. */
  load(state: KLState): void {
    this.#coefficient = checkCoefficient("FixedKL", state.coefficient);
  }
}

/** Options of {@linkcode AdaptiveKL}. */
export interface AdaptiveKLOptions {
  /** β at the start. Default .05. */
  readonly coefficient?: number;
  /** The KL to keep, in nats an answer. Default 6. */
  readonly target?: number;
  /** Answers in which β may change by about a fifth. Default 10,000. */
  readonly horizon?: number;
}

/**
 * A coefficient that rises while the KL is above its target and falls while it is below (Ziegler et al.
 * 2019, section 2.2), for a batch of n answers:
 *
 *     β ← β (1 + clip(KL / target − 1, ±.2) · n / horizon)
 *
 * @example
 * ```ts
 * import { AdaptiveKL } from "@graft/ml/rlhf";
 *
 * const kl = new AdaptiveKL({ coefficient: 0.1, target: 6, horizon: 100 });
 * kl.update(12, 50); // twice the target
 * console.log(kl.coefficient.toFixed(3)); // 0.110
 * ```
 */
export class AdaptiveKL implements KLController {
  /** The KL to keep, in nats an answer. */
  readonly target: number;
  /** Answers in which β may change by about a fifth. */
  readonly horizon: number;
  #coefficient: number;

  /** Throws a `RangeError` where the target or the horizon is not above 0, or the coefficient negative. */
  constructor({ coefficient = 0.05, target = 6, horizon = 10_000 }: AdaptiveKLOptions = {}) {
    for (const [name, value] of Object.entries({ target, horizon })) {
      if (!(value > 0 && value < Infinity)) {
        throw new RangeError(`AdaptiveKL: ${name} must be above 0, got ${value}`);
      }
    }
    this.#coefficient = checkCoefficient("AdaptiveKL", coefficient);
    this.target = target;
    this.horizon = horizon;
  }

  /** β. */
  get coefficient(): number {
    return this.#coefficient;
  }

  /** Follows the KL of a batch, by the formula above. Throws a `RangeError` where it is not finite. */
  update(kl: number, answers: number): void {
    checkKL("AdaptiveKL", kl);
    const error = Math.min(0.2, Math.max(-0.2, kl / this.target - 1));
    // With more answers than the horizon's fivefold, a factor could be negative.
    this.#coefficient *= Math.max(0, 1 + error * answers / this.horizon);
  }

  /** What a checkpoint holds. */
  state(): KLState {
    return { coefficient: this.#coefficient };
  }

  /** Goes on from a state. */
  load(state: KLState): void {
    this.#coefficient = checkCoefficient("AdaptiveKL", state.coefficient);
  }
}

function checkCoefficient(what: string, coefficient: number): number {
  if (!(coefficient >= 0 && coefficient < Infinity)) {
    throw new RangeError(`${what}: the coefficient must be 0 or more, got ${coefficient}`);
  }
  return coefficient;
}

function checkKL(what: string, kl: number): void {
  if (!Number.isFinite(kl)) throw new RangeError(`${what}: needs a finite KL, got ${kl}`);
}

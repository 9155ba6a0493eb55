/**
 * Learning-rate schedules: functions from the step, counted from 0, to a factor of the learning rate.
 *
 * @module
 */

/** From a step, counted from 0, to a factor. */
export type Schedule = (step: number) => number;

/** Options of a schedule. */
export interface ScheduleOptions {
  /** Steps over which the factor rises from 0 to 1: step s of them has (s + 1) / warmup. Default 0. */
  readonly warmup?: number;
  /** The factor at the last step and after. Default 0. */
  readonly end?: number;
}

/**
 * The factor stays 1 after warm-up.
 *
 * @example
 * ```ts
 * import { constantSchedule } from "@graft/ml/optim";
 *
 * const factor = constantSchedule({ warmup: 4 });
 * console.log([0, 1, 2, 3, 4].map(factor)); // [0.25, 0.5, 0.75, 1, 1]
 * ```
 */
export function constantSchedule({ warmup = 0 }: ScheduleOptions = {}): Schedule {
  check(warmup, Infinity, 0);
  return (step) => step < warmup ? (step + 1) / warmup : 1;
}

/**
 * The factor falls along a line from 1, after warm-up, to `end` at the last of `steps` steps.
 *
 * Throws a `RangeError` where warm-up is longer than the run.
 */
export function linearSchedule(steps: number, options: ScheduleOptions = {}): Schedule {
  return falling(steps, options, (progress) => 1 - progress);
}

/**
 * The factor falls along half a cosine from 1, after warm-up, to `end` at the last of `steps` steps
 * (Loshchilov and Hutter 2017, without restarts).
 *
 * Throws a `RangeError` where warm-up is longer than the run.
 *
 * @example
 * ```ts
 * import { cosineSchedule } from "@graft/ml/optim";
 *
 * const factor = cosineSchedule(101, { end: 0.1 });
 * console.log(factor(0), factor(50), factor(100)); // 1, 0.55, 0.1
 * ```
 */
export function cosineSchedule(steps: number, options: ScheduleOptions = {}): Schedule {
  return falling(steps, options, (progress) => (1 + Math.cos(Math.PI * progress)) / 2);
}

function falling(
  steps: number,
  { warmup = 0, end = 0 }: ScheduleOptions,
  shape: (progress: number) => number,
): Schedule {
  check(warmup, steps, end);
  return (step) => {
    if (step < warmup) return (step + 1) / warmup;
    const progress = Math.min((step - warmup) / Math.max(steps - 1 - warmup, 1), 1);
    return end + (1 - end) * shape(progress);
  };
}

function check(warmup: number, steps: number, end: number): void {
  if (!(warmup >= 0 && warmup <= steps)) {
    throw new RangeError(`schedule: warmup must be in [0, ${steps}], got ${warmup}`);
  }
  if (!(end >= 0 && end <= 1)) {
    throw new RangeError(`schedule: end must be in [0, 1], got ${end}`);
  }
}

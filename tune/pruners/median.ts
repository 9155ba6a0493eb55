/**
 * The median pruner.
 *
 * @module
 */

import { better, type Pruner, type PrunerContext, type TrialRecord } from "../records.ts";
import { wholeNumber } from "./whole.ts";

/** Options of `MedianPruner`. */
export interface MedianOptions {
  /** How many trials must be complete before any is pruned. Default 5. */
  readonly startup?: number;
  /** Reports at steps below this one prune nothing. Default 0. */
  readonly warmup?: number;
}

/**
 * Stops a trial whose best report so far is worse than the median of what the complete trials had
 * reported by that step (the median stopping rule of Golovin et al. 2017, "Google Vizier", section
 * 3.5.1, with the last report of the others in place of their running mean).
 *
 * A trial whose last report is not a finite number is stopped after warm-up, whatever the others did.
 *
 * The constructor throws a `RangeError` where an option is not a whole number of at least 0.
 *
 * @example
 * ```ts
 * import { MedianPruner, Study, uniform } from "@graft/ml/tune";
 *
 * const study = new Study({
 *   space: { x: uniform(0, 1) },
 *   pruner: new MedianPruner({ warmup: 2 }),
 * });
 * await study.run((trial) => {
 *   for (let step = 0; step < 10; step++) {
 *     trial.report(step, trial.params.x + 1 / (step + 1));
 *     if (trial.shouldPrune()) return { state: "pruned" };
 *   }
 *   return trial.params.x;
 * }, { trials: 20 });
 * console.log(study.trials.filter((t) => t.state === "pruned").length > 0); // true
 * ```
 */
export class MedianPruner implements Pruner {
  /** The pruner's name. */
  readonly name = "median";
  readonly #startup: number;
  readonly #warmup: number;

  /** A pruner. */
  constructor({ startup = 5, warmup = 0 }: MedianOptions = {}) {
    this.#startup = wholeNumber("median pruner: startup", startup, 0);
    this.#warmup = wholeNumber("median pruner: warmup", warmup, 0);
  }

  /** Whether the trial should stop after its last report. */
  shouldPrune(trial: TrialRecord, { direction, trials }: PrunerContext): boolean {
    const { step, value } = trial.reports[trial.reports.length - 1];
    const complete = trials.filter((t) => t.state === "complete");
    if (step < this.#warmup) return false;
    if (Number.isNaN(value)) return true;
    if (complete.length < this.#startup) return false;
    const others = complete.flatMap((t) => {
      const then = t.reports.findLast((report) => report.step <= step);
      return then && !Number.isNaN(then.value) ? [then.value] : [];
    });
    if (others.length === 0) return false;
    const best = trial.reports.reduce(
      (a, report) => better(direction, report.value, a) ? report.value : a,
      NaN,
    );
    return better(direction, median(others), best);
  }
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

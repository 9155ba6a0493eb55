/**
 * The successive-halving pruner.
 *
 * @module
 */

import { better, type Pruner, type PrunerContext, type TrialRecord } from "../records.ts";
import { wholeNumber } from "./whole.ts";

/** Options of `HalvingPruner`. */
export interface HalvingOptions {
  /** The step of the first rung. Default 1. */
  readonly first?: number;
  /** Each rung is this many times as far, and one trial in this many goes on. Default 4. */
  readonly factor?: number;
}

/**
 * Asynchronous successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter
 * Tuning", section 3). Rungs lie at the steps first, first · factor, first · factor², and so on. At the
 * first report on or after a rung, a trial goes on if it is among the best ⌊n / factor⌋ of the n
 * trials that have come there, itself among them, and at least if it is the best one.
 *
 * Between rungs it stops nothing. A report that is not a finite number does not pass a rung. The paper
 * pauses a trial and may take it up later; here a trial that does not go on ends.
 *
 * The constructor throws a `RangeError` where `first` is not a whole number of at least 1, or `factor`
 * of at least 2.
 *
 * @example
 * ```ts
 * import { HalvingPruner, Study, uniform } from "@graft/ml/tune";
 *
 * const study = new Study({
 *   space: { x: uniform(0, 1) },
 *   pruner: new HalvingPruner({ first: 2, factor: 3 }), // rungs at 2, 6, 18
 * });
 * await study.run((trial) => {
 *   for (let step = 1; step <= 20; step++) {
 *     trial.report(step, trial.params.x + 1 / step);
 *     if (trial.shouldPrune()) return { state: "pruned" };
 *   }
 *   return trial.params.x;
 * }, { trials: 20 });
 * console.log(study.trials.filter((t) => t.state === "pruned").length > 0); // true
 * ```
 */
export class HalvingPruner implements Pruner {
  /** The pruner's name. */
  readonly name = "halving";
  readonly #first: number;
  readonly #factor: number;

  /** A pruner. */
  constructor({ first = 1, factor = 4 }: HalvingOptions = {}) {
    this.#first = wholeNumber("halving pruner: first", first, 1);
    this.#factor = wholeNumber("halving pruner: factor", factor, 2);
  }

  /** Whether the trial should stop after its last report. */
  shouldPrune(trial: TrialRecord, { direction, trials }: PrunerContext): boolean {
    const { step, value } = trial.reports[trial.reports.length - 1];
    const before = trial.reports.at(-2)?.step ?? -1;
    // The last rung that this report is the first to reach; one report may pass several.
    let rung = -1;
    for (let at = this.#first; at <= step; at *= this.#factor) if (at > before) rung = at;
    if (rung < 0) return false;
    if (Number.isNaN(value)) return true;
    let count = 0;
    let ahead = 0;
    for (const other of trials) {
      if (other.state === "failed" && !other.diverged) continue;
      const there = other.reports.find((report) => report.step >= rung);
      if (!there) continue;
      count++;
      if (other.number !== trial.number && better(direction, there.value, value)) ahead++;
    }
    return ahead >= Math.max(1, Math.floor(count / this.#factor));
  }
}

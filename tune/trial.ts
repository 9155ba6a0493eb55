/**
 * A trial under way.
 *
 * @module
 */

import type { Definition, Params } from "./parameters.ts";

/** One point of the space, on trial: what `study.ask()` gives. */
export class Trial<S extends Definition> {
  /** Which trial it is, from 0. */
  readonly number: number;
  /** Its parameters; one whose condition is not met has no key. */
  readonly params: Params<S>;
  readonly #report: (step: number, value: number) => void;
  readonly #shouldPrune: () => boolean;

  /** Made by `study.ask()`. */
  constructor(
    number: number,
    params: Params<S>,
    report: (step: number, value: number) => void,
    shouldPrune: () => boolean,
  ) {
    this.number = number;
    this.params = params;
    this.#report = report;
    this.#shouldPrune = shouldPrune;
  }

  /**
   * Reports an intermediate value, for pruning and plots. One that is NaN or infinite is kept as NaN.
   *
   * @param step when: a whole number from 0 on, larger than that of the report before.
   * @throws RangeError if the step is not that.
   * @throws Error if the trial has ended.
   */
  report(step: number, value: number): void {
    this.#report(step, value);
  }

  /**
   * Whether the study's pruner would stop the trial after its last report; false without a pruner or
   * a report. A trial that stops is told as `{ state: "pruned" }`.
   *
   * @throws Error if the trial has ended.
   */
  shouldPrune(): boolean {
    return this.#shouldPrune();
  }
}

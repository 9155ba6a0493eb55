/**
 * Runs the trials of a study, several at a time.
 *
 * @module
 */

import type { Definition } from "./parameters.ts";
import type { Outcome, RunOptions, RunResult, Study } from "./study.ts";
import type { Trial } from "./trial.ts";

/** What `Study.run` does. */
export async function runTrials<S extends Definition>(
  study: Study<S>,
  fn: (trial: Trial<S>) => Outcome | Promise<Outcome>,
  { trials = Infinity, parallel = 1, failures = 5, signal }: RunOptions,
): Promise<RunResult> {
  for (const [name, value] of Object.entries({ trials, parallel, failures })) {
    const endless = value === Infinity && name !== "parallel";
    if (!endless && !(Number.isSafeInteger(value) && value >= 1)) {
      throw new RangeError(`run: ${name} must be a whole number of at least 1, got ${value}`);
    }
  }
  let left = trials - study.trials.filter((t) => t.state !== "running").length;
  let ended: RunResult["ended"] = "trials";
  let row = 0;
  let broken: Error | undefined;

  let stop = false;

  const lane = async () => {
    while (left > 0 && !stop) {
      if (signal?.aborted) {
        ended = "aborted";
        return;
      }
      const trial = study.ask();
      if (trial === undefined) {
        ended = "exhausted";
        return;
      }
      left--;
      let outcome: Outcome;
      try {
        outcome = await fn(trial);
        row = 0;
      } catch (error) {
        const reason = error instanceof Error ? error.message : String(error);
        outcome = { state: "failed", reason };
        if (++row >= failures) {
          stop = true;
          broken ??= new Error(`run: ${row} trials in a row threw, the last one: ${reason}`, {
            cause: error,
          });
        }
      }
      study.tell(trial, outcome);
    }
  };
  // A lane that throws, as on a full disk, stops the others after their trials, and is heard then.
  const lanes = await Promise.allSettled(
    Array.from({ length: Math.min(parallel, left) }, () =>
      lane().catch((error) => {
        stop = true;
        throw error;
      })),
  );
  for (const result of lanes) if (result.status === "rejected") throw result.reason;
  if (broken) throw broken;
  return { ended };
}

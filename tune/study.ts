/**
 * A study: trials asked for and told, in memory and in a file.
 *
 * @module
 */

import { Log, type StudyEvent, type TellEvent, type TrialEvent } from "./log.ts";
import { type Definition, keyOf, type Params, type Value } from "./parameters.ts";
import { Random } from "./random.ts";
import {
  better,
  type Direction,
  type Pruner,
  type Report,
  type Sampler,
  type TrialRecord,
} from "./records.ts";
import { runTrials } from "./run.ts";
import { TpeSampler } from "./samplers/tpe.ts";
import { Space } from "./space.ts";
import { Trial } from "./trial.ts";

/** What a study is made of. */
export interface StudyOptions<S extends Definition> {
  /** Where to look. */
  readonly space: S;
  /** Says where to look next. Default `new TpeSampler()`. */
  readonly sampler?: Sampler;
  /** Whether the least or the greatest value is best. Default "minimize". */
  readonly direction?: Direction;
  /** Says which trials to stop early. Default none. */
  readonly pruner?: Pruner;
  /** The seed of all random choices, a whole number. Default 0, or the file's. */
  readonly seed?: number;
  /** The path of a file that holds the study; one that is there is gone on with. Default none. */
  readonly file?: string;
}

/** How a trial came out: its value, or another way to end. */
export type Outcome = number | {
  /** Stopped early, or failed. */
  readonly state: "pruned" | "failed";
  /** Why, in words. */
  readonly reason?: string;
};

/** Options of `Study.run`. */
export interface RunOptions {
  /**
   * How many trials the study is to have ended, those of earlier runs among them. Default: until the
   * sampler has no more points.
   */
  readonly trials?: number;
  /** How many trials run at a time. Default 1. */
  readonly parallel?: number;
  /** How many trials in a row may throw before the run gives up. Default 5. */
  readonly failures?: number;
  /** Ends the run: no further trial is begun, and those under way are waited for. */
  readonly signal?: AbortSignal;
}

/** How a run ended. */
export interface RunResult {
  /** With the number of trials asked for, out of points, or by its signal. */
  readonly ended: "trials" | "exhausted" | "aborted";
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };
type Entry = Omit<Mutable<TrialRecord>, "reports"> & { reports: Report[] };

/**
 * A search over a space: `ask` for a trial, run it in any way, `tell` how it came out; or let `run` do
 * all three.
 *
 * With a `file` each event is appended when it happens, so a process that is killed loses no trial that
 * ended. A later study with the same file goes on: trials that were under way are asked for again, with
 * their number and parameters; then come the points that an unbroken study with the same seed and
 * sampler would have given, where trials are told in the same order. A last line cut off in the middle
 * is removed with a warning.
 *
 * The constructor throws a `RangeError` for a space or a seed that is wrong, and an `Error` that names
 * the file, and the line where there is one, if the file cannot be opened, is in use, holds another
 * space, direction or seed, or has a line that is not an event.
 *
 * @example
 * ```ts
 * import { Study, uniform } from "@graft/ml/tune";
 *
 * const study = new Study({ space: { x: uniform(-5, 5) }, seed: 1 });
 * for (let i = 0; i < 30; i++) {
 *   const trial = study.ask()!;
 *   study.tell(trial, (trial.params.x - 2) ** 2);
 * }
 * console.log(study.best().params.x); // near 2
 * ```
 */
export class Study<S extends Definition> {
  /** The space, checked. */
  readonly space: Space;
  /** Whether the least or the greatest value is best. */
  readonly direction: Direction;
  /** The seed of all random choices. */
  readonly seed: number;
  readonly #sampler: Sampler;
  readonly #pruner?: Pruner;
  readonly #log?: Log;
  readonly #entries: Entry[] = [];
  /** Numbers of trials that a dead process left running, still to be asked for again. */
  readonly #again: number[] = [];
  /** The trial that speaks for a number; an older one for the same number may not. */
  readonly #trials = new Map<number, Trial<S>>();

  /** A study. */
  constructor(options: StudyOptions<S>) {
    const { space, sampler = new TpeSampler(), direction = "minimize", pruner, seed, file } =
      options;
    if (direction !== "minimize" && direction !== "maximize") {
      throw new RangeError(`study: direction must be "minimize" or "maximize", got ${direction}`);
    }
    if (seed !== undefined && !Number.isSafeInteger(seed)) {
      throw new RangeError(`study: seed must be a whole number, got ${seed}`);
    }
    this.space = new Space(space);
    this.direction = direction;
    this.#sampler = sampler;
    this.#pruner = pruner;
    this.seed = seed ?? 0;
    if (file === undefined) return;
    this.#log = new Log(file);
    const [head, ...lines] = this.#log.lines;
    try {
      if (head === undefined) {
        const event: StudyEvent = { event: "study", version: 1, direction, seed: this.seed, space };
        this.#log.append(event, true);
        return;
      }
      this.seed = this.#checkHead(head.event as StudyEvent, options);
      for (const { number, event } of lines) {
        const fault = event.event === "study" ? "a second study begins" : this.#replay(event);
        if (fault) throw new Error(`study ${file}, line ${number}: ${fault}`);
      }
    } catch (error) {
      this.#log.close();
      throw error;
    }
    for (const { number, state } of this.#entries) {
      if (state === "running") this.#again.push(number);
    }
  }

  /** Every trial so far, by number. */
  get trials(): readonly TrialRecord<Params<S>>[] {
    return this.#entries as readonly TrialRecord[] as readonly TrialRecord<Params<S>>[];
  }

  /**
   * Begins a trial. Undefined where the sampler has no more points, as a grid after its last.
   *
   * @throws RangeError if the sampler's settings do not fit the space.
   * @throws Error if the study's file is closed or cannot be written.
   */
  ask(): Trial<S> | undefined {
    let number: number | undefined = this.#again[0];
    if (number === undefined) {
      number = this.#entries.length;
      const params = this.#sampler.suggest({
        space: this.space,
        direction: this.direction,
        trials: this.#entries,
        random: new Random(this.seed, number),
      });
      if (params === undefined) return undefined;
      const fault = this.space.fault(params);
      if (fault) throw new RangeError(`study: the ${this.#sampler.name} sampler: ${fault}`);
      this.#log?.append({ event: "ask", trial: number, params }, false);
      this.#entries.push({ number, params, state: "running", reports: [] });
    } else {
      this.#log?.append(
        { event: "ask", trial: number, params: this.#entries[number].params },
        false,
      );
      this.#entries[number].reports = [];
      this.#again.shift();
    }
    const { params } = this.#entries[number];
    const trial: Trial<S> = new Trial<S>(
      number,
      // A copy: what a user does to it does not reach the study.
      structuredClone(params) as unknown as Params<S>,
      (step, value) => this.#report(trial, step, value),
      () => this.#shouldPrune(trial),
    );
    this.#trials.set(number, trial);
    return trial;
  }

  /**
   * Ends a trial with its value, or as pruned or failed. A value that is NaN or infinite is a failed
   * trial that counts as `diverged`: the TPE sampler stays away from where it was.
   *
   * @throws Error if the trial is not this study's or has ended already, or the study's file is closed
   * or cannot be written.
   */
  tell(trial: Trial<S>, outcome: Outcome): void {
    const entry = this.#running("tell", trial);
    const end: Mutable<TellEvent> = { event: "tell", trial: trial.number, state: "complete" };
    if (typeof outcome !== "number") {
      if (outcome?.state !== "pruned" && outcome?.state !== "failed") {
        throw new Error(
          `tell: trial ${trial.number}: needs a number or { state: "pruned" | "failed" }, got ${
            JSON.stringify(outcome)
          }`,
        );
      }
      end.state = outcome.state;
      if (outcome.reason !== undefined) end.reason = outcome.reason;
    } else if (Number.isFinite(outcome)) {
      end.value = outcome;
    } else {
      end.state = "failed";
      end.reason = `its value is ${outcome}`;
      end.diverged = true;
    }
    this.#log?.append(end, true);
    finish(entry, end);
    this.#trials.delete(trial.number);
  }

  /**
   * Runs trials until the study has as many as asked for or the sampler has no more. A function that
   * throws makes a failed trial, with its message as the reason, and the run goes on.
   *
   * @param fn gives a trial's value, or says that it was pruned. It may hand the trial's parameters to
   * a worker and wait for it: with `parallel` several are under way at a time.
   * @throws Error if too many trials in a row threw; its cause is what the last one threw.
   * @throws RangeError if an option is not a whole number, or `trials` is missing though the sampler
   * never ends.
   */
  run(
    fn: (trial: Trial<S>) => Outcome | Promise<Outcome>,
    options: RunOptions = {},
  ): Promise<RunResult> {
    if (options.trials === undefined && !this.#sampler.ends) {
      return Promise.reject(
        new RangeError(`run: the ${this.#sampler.name} sampler never ends: say how many trials`),
      );
    }
    return runTrials(this, fn, options);
  }

  /**
   * The complete trial with the best value; the first of several.
   *
   * @throws Error if no trial is complete.
   */
  best(): TrialRecord<Params<S>> {
    let best: TrialRecord<Params<S>> | undefined;
    for (const trial of this.trials) {
      if (trial.state !== "complete") continue;
      if (!best || better(this.direction, trial.value!, best.value!)) best = trial;
    }
    if (best) return best;
    const count = (state: string) => this.#entries.filter((t) => t.state === state).length;
    throw new Error(
      `best: no trial is complete (${count("failed")} failed, ${count("pruned")} pruned, ` +
        `${count("running")} running)`,
    );
  }

  /**
   * The best trial's parameters as an object of its own, for a JSON file.
   *
   * @throws Error if no trial is complete.
   */
  bestConfig(): Params<S> {
    return structuredClone(this.best().params);
  }

  /** Closes the file, if there is one. The study can be read, but not gone on with. */
  close(): void {
    this.#log?.close();
  }

  #running(operation: string, trial: Trial<S>): Entry {
    const entry = this.#entries[trial.number];
    if (this.#trials.get(trial.number) === trial) return entry;
    if (entry === undefined || entry.state === "running") {
      throw new Error(`${operation}: trial ${trial.number} is not one that this study gave out`);
    }
    throw new Error(`${operation}: trial ${trial.number} has ended already: it is ${entry.state}`);
  }

  #report(trial: Trial<S>, step: number, given: number): void {
    const { reports } = this.#running("report", trial);
    const last = reports.at(-1)?.step ?? -1;
    if (!Number.isSafeInteger(step) || step < 0) {
      throw new RangeError(`report: step must be a whole number of at least 0, got ${step}`);
    }
    if (step <= last) {
      throw new RangeError(`report: steps must ascend; step ${step} comes after step ${last}`);
    }
    if (typeof given !== "number") {
      throw new TypeError(`report: value must be a number, got ${JSON.stringify(given)}`);
    }
    const value = Number.isFinite(given) ? given : null;
    this.#log?.append({ event: "report", trial: trial.number, step, value }, false);
    reports.push({ step, value: value ?? NaN });
  }

  #shouldPrune(trial: Trial<S>): boolean {
    const entry = this.#running("shouldPrune", trial);
    if (!this.#pruner || entry.reports.length === 0) return false;
    return this.#pruner.shouldPrune(entry, { direction: this.direction, trials: this.#entries });
  }

  /** The seed of the file, whose head must fit what was asked for. */
  #checkHead(head: StudyEvent, options: StudyOptions<S>): number {
    const differs = (what: string, theirs: unknown, ours: unknown) =>
      new Error(
        `study ${options.file}, line 1: has ${what} ${JSON.stringify(theirs)}, asked for is ${
          JSON.stringify(ours)
        }`,
      );
    if (head.direction !== this.direction) {
      throw differs("direction", head.direction, this.direction);
    }
    if (options.seed !== undefined && options.seed !== head.seed) {
      throw differs("seed", head.seed, options.seed);
    }
    const [theirs, ours] = [head.space, this.space.definition];
    for (const name of new Set([...Object.keys(theirs), ...Object.keys(ours)])) {
      const [a, b] = [theirs[name], ours[name]] as unknown as (Value | undefined)[];
      if (keyOf(a ?? null) !== keyOf(b ?? null)) {
        throw differs(`parameter ${name}`, a ?? null, b ?? null);
      }
    }
    return head.seed;
  }

  /** Takes an event of the file over; says what is wrong with it. */
  #replay(event: TrialEvent): string | undefined {
    const entry = this.#entries[event.trial] as Entry | undefined;
    if (event.event === "ask") {
      const fault = this.space.fault(event.params);
      if (fault) return fault;
      if (entry === undefined) {
        if (event.trial > this.#entries.length) return `trial ${event.trial} comes too early`;
        const { trial: number, params } = event;
        this.#entries.push({ number, params, state: "running", reports: [] });
        return undefined;
      }
      if (entry.state !== "running") return `trial ${event.trial} has ended already`;
      if (keyOf(entry.params) !== keyOf(event.params)) {
        return `trial ${event.trial} had other parameters before`;
      }
      entry.reports = [];
      return undefined;
    }
    if (entry === undefined) return `trial ${event.trial} has not begun`;
    if (entry.state !== "running") return `trial ${event.trial} has ended already`;
    if (event.event === "tell") finish(entry, event);
    else {
      if (event.step <= (entry.reports.at(-1)?.step ?? -1)) return "steps must ascend";
      entry.reports.push({ step: event.step, value: event.value ?? NaN });
    }
    return undefined;
  }
}

function finish(entry: Entry, { state, value, reason, diverged }: TellEvent): void {
  entry.state = state;
  if (value !== undefined) entry.value = value;
  if (reason !== undefined) entry.reason = reason;
  if (diverged) entry.diverged = true;
}

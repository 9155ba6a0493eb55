/**
 * What a study knows of its trials, and what samplers and pruners are: functions of that knowledge.
 *
 * @module
 */

import type { Random } from "./random.ts";
import type { Space, Values } from "./space.ts";

/** Whether a study looks for the least or the greatest value. */
export type Direction = "minimize" | "maximize";

/** How far a trial is: under way, or the way it ended. */
export type TrialState = "running" | "complete" | "pruned" | "failed";

/** An intermediate value. */
export interface Report {
  /** When: a whole number from 0 on, such as a training step or an epoch. */
  readonly step: number;
  /** The value then; NaN where it was not a finite number. */
  readonly value: number;
}

/** What is known of one trial. */
export interface TrialRecord<P = Values> {
  /** Which trial it is, from 0. */
  readonly number: number;
  /** Its parameters. */
  readonly params: P;
  /** How far it is. */
  readonly state: TrialState;
  /** Its value, where it is complete. */
  readonly value?: number;
  /** Its intermediate values, steps ascending. */
  readonly reports: readonly Report[];
  /** Why it failed. */
  readonly reason?: string;
  /** True where it failed with a value that is not a finite number. */
  readonly diverged?: boolean;
}

/** What a sampler may look at. */
export interface SamplerContext {
  /** The space, checked. */
  readonly space: Space;
  /** What the study looks for. */
  readonly direction: Direction;
  /** Every trial so far, by number. */
  readonly trials: readonly TrialRecord[];
  /** Random numbers of this trial alone. */
  readonly random: Random;
}

/** Says where to look next. */
export interface Sampler {
  /** Its name, for messages. */
  readonly name: string;
  /** Whether it has a last point. */
  readonly ends: boolean;
  /** A point of the space, or undefined where the sampler has no more. */
  suggest(context: SamplerContext): Values | undefined;
}

/** What a pruner may look at. */
export interface PrunerContext {
  /** What the study looks for. */
  readonly direction: Direction;
  /** Every trial so far, by number. */
  readonly trials: readonly TrialRecord[];
}

/** Says which trials are not worth going on with. */
export interface Pruner {
  /** Its name, for messages. */
  readonly name: string;
  /** Whether a running trial, which has at least one report, should stop after its last one. */
  shouldPrune(trial: TrialRecord, context: PrunerContext): boolean;
}

/** Whether `a` is better than `b`. NaN is worse than every number. */
export function better(direction: Direction, a: number, b: number): boolean {
  if (Number.isNaN(b)) return !Number.isNaN(a);
  return direction === "minimize" ? a < b : a > b;
}

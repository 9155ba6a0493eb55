/**
 * A stage that takes steps: it can be stopped and killed, and goes on where its last step ended.
 */

import { read, type Tensor, type Variable } from "@graft/ml";
import { clipGradNorm, loadCheckpoint, type Optimizer, saveCheckpoint } from "@graft/ml/optim";
import { Metrics, type Progress } from "../log.ts";

/** Figures of a step, by name. */
export type Figures = Readonly<Record<string, number>>;

/** What is trained, how, and how far. `S` is what a checkpoint holds beside the tensors: JSON. */
export interface Stage<S> {
  /** For messages. */
  readonly name: string;
  /** Where its files go. */
  readonly folder: string;
  /** Steps to take. */
  readonly steps: number;
  /** What is trained, by name. */
  readonly parameters: ReadonlyMap<string, Variable>;
  /** What trains it. */
  readonly optimizer: Optimizer;
  /** Figures from before the first step. */
  begin(): Promise<Figures>;
  /** Takes a step, numbered from 1. Where it throws, the step before is what stays. */
  step(number: number): Promise<Figures>;
  /** Where the stage stands. */
  state(): S;
  /** Goes on from a state. */
  load(state: S): void;
}

/** By SIGINT or SIGTERM: what was done is kept. */
export class Stopped extends Error {}

/** What all stages share. */
export interface Host {
  /** Where lines and the progress bar go. */
  readonly log: Progress;
  /** Whether to end after the step at hand. */
  stopped(): boolean;
}

/**
 * Takes the steps of a stage, from its checkpoint on where there is one. Each step is followed by a
 * checkpoint and a line of `metrics.jsonl`.
 *
 * Throws {@linkcode Stopped}, or an `Error` that says which step failed; the checkpoint is of the step
 * before.
 */
export async function runSteps<S>(stage: Stage<S>, host: Host): Promise<void> {
  const { name, folder, steps } = stage;
  const file = `${folder}/checkpoint.safetensors`;
  let step = 0;
  const save = (): Promise<void> => saveCheckpoint(file, stage, { step, state: stage.state() });
  await Deno.mkdir(folder, { recursive: true });
  if (await isThere(file)) {
    const at = await loadCheckpoint(file, stage) as { step: number; state: S };
    step = at.step;
    stage.load(at.state);
    host.log.line(`${name}: goes on after step ${step}`);
  }
  const metrics = await Metrics.open(`${folder}/metrics.jsonl`, step);
  if (step === 0) {
    await metrics.write({ step, ...await stage.begin() });
    await save();
  }
  while (step < steps) {
    if (host.stopped()) throw new Stopped(`${name} stopped after step ${step}`);
    let figures: Figures;
    try {
      figures = await stage.step(step + 1);
    } catch (error) {
      throw new Error(
        `${name}, step ${step + 1}: ${error instanceof Error ? error.message : error}; ${folder} ` +
          `holds the run as it was after step ${step}`,
        { cause: error },
      );
    }
    step++;
    await metrics.write({ step, ...figures });
    await save();
    host.log.note(`${name}: step ${step} of ${steps}`);
  }
}

/**
 * One step of an optimizer, the gradients clipped to norm 1; gives the norm from before. Where it is not
 * finite, nothing changes.
 */
export async function clippedStep(optimizer: Optimizer): Promise<Tensor> {
  const norm = clipGradNorm(optimizer.parameters, 1);
  await optimizer.step({ when: norm.isnan().not().and(norm.lt(3e38)) });
  optimizer.zeroGrad();
  return norm;
}

/** The values of scalars. Throws an `Error` where one is not finite. */
export async function finite(scalars: Readonly<Record<string, Tensor>>): Promise<Figures> {
  const values = await read(...Object.values(scalars));
  return Object.fromEntries(
    Object.keys(scalars).map((name, i) => {
      const [value] = values[i];
      if (!Number.isFinite(value)) {
        throw new Error(`${name} is ${value}: try a lower learning rate`);
      }
      return [name, value];
    }),
  );
}

/** Whether there is a file or a folder. */
export async function isThere(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

/**
 * Training checkpoints: one file with everything a run needs to go on to the bit.
 *
 * @module
 */

import {
  openSafetensors,
  type SafetensorsFile,
  type SafetensorsInput,
  type Variable,
  writeSafetensors,
} from "../core/mod.ts";
import type { Optimizer, OptimizerCounters, StateTensor } from "./optimizer.ts";

/** What a checkpoint holds. */
export interface Checkpoint {
  /** The trained parameters by name. */
  readonly parameters: ReadonlyMap<string, Variable>;
  /** What trains them. */
  readonly optimizer: Optimizer;
}

const PARAMETER = "parameter.", STATE = "optimizer.";

/**
 * Writes the parameters, the optimizer's state and `progress` (anything JSON can hold: the step, the
 * states of loader and generator) into one safetensors file. The file is whole, or what it was before.
 *
 * `counters` stands in for the optimizer's own where they have gone on since, as after a step that its
 * `when` held back.
 *
 * Throws an `Error` where a parameter is not of f32, or the file cannot be written.
 */
export async function saveCheckpoint(
  path: string,
  { parameters, optimizer }: Checkpoint,
  progress: unknown,
  counters: OptimizerCounters = optimizer.counters(),
): Promise<void> {
  const tensors: [string, SafetensorsInput][] = [];
  for (const [name, variable] of parameters) {
    if (variable.dtype !== "f32") {
      throw new TypeError(`saveCheckpoint: ${name} needs dtype f32, has ${variable.dtype}`);
    }
    tensors.push([PARAMETER + name, f32(variable.shape, async () => await variable.data())]);
  }
  const state = await optimizer.state();
  for (const [name, { shape, data }] of state.tensors) {
    tensors.push([STATE + name, f32(shape, () => data)]);
  }
  const json = JSON.stringify({ counters, progress });
  await writeSafetensors(path, tensors, { format: "graft-checkpoint", version: "1", state: json });
}

/**
 * The `progress` that a checkpoint was saved with, without its tensors.
 *
 * Throws an `Error` that names the file where it is no checkpoint.
 */
export async function checkpointProgress(path: string): Promise<unknown> {
  await using file = await openSafetensors(path);
  return headerOf(file).progress;
}

function headerOf(file: SafetensorsFile): { counters: OptimizerCounters; progress: unknown } {
  const { format, version, state } = file.metadata;
  if (format !== "graft-checkpoint" || version !== "1") {
    throw new Error(
      `load checkpoint ${file.name}: it is a safetensors file, but no checkpoint of this version`,
    );
  }
  return JSON.parse(state);
}

/**
 * Reads a checkpoint back into the parameters and the optimizer, and gives its `progress`.
 *
 * Throws an `Error` that names the file and lists every parameter that is missing, unexpected or of
 * another shape; then nothing is changed.
 */
export async function loadCheckpoint(
  path: string,
  { parameters, optimizer }: Checkpoint,
): Promise<unknown> {
  await using file = await openSafetensors(path);
  const what = `load checkpoint ${path}`;
  const { counters, progress } = headerOf(file);
  const problems: string[] = [];
  for (const [name, { shape }] of parameters) {
    const entry = file.entries.get(PARAMETER + name);
    if (!entry) problems.push(`${name} is missing`);
    else if (entry.shape.join() !== shape.join() || entry.dtype !== "F32") {
      problems.push(
        `${name} needs F32 [${shape.join(", ")}], has ${entry.dtype} [${entry.shape.join(", ")}]`,
      );
    }
  }
  for (const key of file.names) {
    if (key.startsWith(PARAMETER) && !parameters.has(key.slice(PARAMETER.length))) {
      problems.push(`${key.slice(PARAMETER.length)} is unexpected`);
    }
  }
  if (problems.length > 0) {
    throw new Error(`${what}: it is of another model or method:\n  ${problems.join("\n  ")}`);
  }
  const values = async (key: string): Promise<Float32Array<ArrayBuffer>> =>
    new Float32Array((await file.read(key)).buffer);
  const tensors = new Map<string, StateTensor>();
  for (const key of file.names) {
    if (!key.startsWith(STATE)) continue;
    const { shape } = file.entries.get(key)!;
    tensors.set(key.slice(STATE.length), { shape, data: await values(key) });
  }
  await optimizer.loadState({ counters, tensors });
  for (const [name, variable] of parameters) await variable.write(await values(PARAMETER + name));
  return progress;
}

function f32(
  shape: readonly number[],
  read: () => ArrayBufferView | Promise<ArrayBufferView>,
): SafetensorsInput {
  return {
    dtype: "F32",
    shape,
    data: async () => {
      const { buffer, byteOffset, byteLength } = await read();
      return new Uint8Array(buffer, byteOffset, byteLength);
    },
  };
}

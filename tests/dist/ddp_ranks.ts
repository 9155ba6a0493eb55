/** Ranks of one thread, each with a device of its own, for tests of data parallelism. */

import { assert, assertEquals } from "@std/assert";
import { type Device, init, useDevice } from "@graft/ml";
import { localGroups, type ProcessGroup } from "@graft/ml/dist";
import type { Job, Outcome } from "./ddp_train.ts";

/** ‖a − b‖ / ‖b‖ */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assertEquals(a.length, b.length);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** What ranks have to come to, given what one device does. */
export function assertAlike(ranks: readonly Outcome[], one: Outcome, job: Job): void {
  for (const { parameters, losses } of ranks) {
    assertEquals(parameters, ranks[0].parameters, "ranks hold the same bits");
    assertEquals(losses, ranks[0].losses);
  }
  const [{ gradients, parameters, losses }] = ranks;
  const gradientDistance = distance(gradients, one.gradients);
  assert(gradientDistance < 1e-6, `gradients differ by ${gradientDistance}`);
  const parameterDistance = distance(parameters, one.parameters);
  const most = job.optimizer === "sgd" ? 1e-6 : 1e-5;
  assert(parameterDistance < most, `parameters differ by ${parameterDistance}`);
  losses.forEach((loss, i) => {
    assert(
      Math.abs(loss - one.losses[i]) < 1e-5,
      `step ${i}: ${loss}, one device ${one.losses[i]}`,
    );
  });
  // A few steps, or a prefix of three tokens, are too little to learn this text by.
  const learns = losses.at(-1)! < losses[0] - 0.3;
  assert(learns || job.steps < 16 || job.method === "prefix", `${losses}`);
}

/** What the ranks of `ddp_train.ts` have left in a folder. */
export async function readOutcomes(folder: string, size: number): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  for (let rank = 0; rank < size; rank++) {
    const { losses, parameters, gradients } = JSON.parse(
      await Deno.readTextFile(`${folder}/${rank}.json`),
    );
    const floats = (values: number[]): Float32Array => Float32Array.from(values);
    outcomes.push({ losses, parameters: floats(parameters), gradients: floats(gradients) });
  }
  return outcomes;
}

/**
 * Runs `fn` with `count` devices. Without an adapter a test on webgpu says why it is skipped; with
 * `GRAFT_REQUIRE_WEBGPU=1` it fails.
 */
export async function withDevices(
  kind: "cpu" | "webgpu",
  count: number,
  fn: (devices: readonly Device[]) => Promise<void>,
): Promise<void> {
  const devices: Device[] = [];
  try {
    for (let i = 0; i < count; i++) devices.push(await init({ device: kind, threads: 1 }));
  } catch (error) {
    if (kind === "cpu" || Deno.env.get("GRAFT_REQUIRE_WEBGPU") === "1") throw error;
    console.log(`skipped: ${(error as Error).message}`);
    return;
  }
  try {
    await fn(devices);
  } finally {
    for (const device of devices) await device.close();
  }
}

/** A rank among those of a thread. */
export interface Rank {
  readonly group: ProcessGroup;
  readonly device: Device;
  /** Makes this rank's device the one new tensors are made on: after each `await`. */
  here(): void;
}

/** Runs `fn` as `count` ranks at once; what each gives, or the error that it throws. */
export async function asRanks<T>(
  count: number,
  fn: (rank: Rank) => Promise<T>,
): Promise<PromiseSettledResult<T>[]> {
  let results: PromiseSettledResult<T>[] = [];
  await withDevices("cpu", count, async (devices) => {
    const groups = localGroups(count, { timeout: 20_000 });
    results = await Promise.allSettled(groups.map((group, i) => {
      const device = devices[i];
      useDevice(device);
      return fn({ group, device, here: () => void useDevice(device) });
    }));
  });
  return results;
}

/** As {@linkcode asRanks}, where none may fail. */
export async function ranks<T>(count: number, fn: (rank: Rank) => Promise<T>): Promise<T[]> {
  return (await asRanks(count, fn)).map((result) => {
    if (result.status === "rejected") throw result.reason;
    return result.value;
  });
}

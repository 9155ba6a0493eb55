/** Ranks of one thread, each with a device of its own, for tests of data parallelism. */

import { assertEquals } from "@std/assert";
import { type Device, init, useDevice } from "@graft/ml";
import { localGroups, type ProcessGroup } from "@graft/ml/dist";

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

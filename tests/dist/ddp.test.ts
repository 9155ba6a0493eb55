/**
 * N ranks on shares of a batch are one device on the whole batch. Ranks of the same job stand in one
 * thread here, or in threads and MPI processes of their own.
 */

import { assertEquals } from "@std/assert";
import type { Device } from "@graft/ml";
import { localGroups, type ParallelOptions, runLocal } from "@graft/ml/dist";
import { assertAlike, readOutcomes, withDevices } from "./ddp_ranks.ts";
import { forEachLauncher, runJob } from "./launchers.ts";
import { type Job, type Outcome, trainRank } from "./ddp_train.ts";

/** A job's ranks in this thread, each with one of `devices`. */
async function train(
  devices: readonly Device[],
  job: Job,
  options: ParallelOptions = {},
): Promise<Outcome[]> {
  const groups = localGroups(devices.length, { timeout: 60_000 });
  return await Promise.all(groups.map((group, i) => trainRank(group, devices[i], job, options)));
}

// Workers and the GPU outlive a test by a moment.
const outliving = { sanitizeOps: false, sanitizeResources: false };

const LORA: Job = { method: "lora", optimizer: "adamw", steps: 30, rows: 4 };
const FULL: Job = { method: "full", optimizer: "sgd", steps: 30, rows: 4 };

// Each way to train at a few sizes, one at all of them. A software GPU takes its time for a step.
const CASES: { kind: "cpu" | "webgpu"; job: Job; sizes: number[] }[] = [
  { kind: "cpu", job: LORA, sizes: [1, 2, 3, 4] },
  { kind: "cpu", job: FULL, sizes: [1, 4] },
  { kind: "cpu", job: { ...FULL, optimizer: "adamw", steps: 16, checkpointing: true }, sizes: [3] },
  {
    kind: "cpu",
    job: { method: "prefix", optimizer: "adamw", steps: 10, rows: 8, accumulate: 2 },
    sizes: [1, 3],
  },
  { kind: "webgpu", job: { ...LORA, steps: 8 }, sizes: [2] },
  { kind: "webgpu", job: { ...FULL, steps: 8 }, sizes: [3] },
];

for (const { kind, job, sizes } of CASES) {
  const { method, optimizer, accumulate, checkpointing } = job;
  const name = [
    method,
    optimizer,
    ...accumulate ? ["accumulating"] : [],
    ...checkpointing ? ["checkpointing"] : [],
  ].join(", ");
  Deno.test({
    name: `ddp: ${sizes.join(", ")} ranks are one device: ${name} (${kind})`,
    ...outliving,
    fn: () =>
      withDevices(kind, Math.max(...sizes), async (devices) => {
        const [one] = await train(devices.slice(0, 1), job);
        for (const size of sizes) {
          const ranks = await train(devices.slice(0, size), job);
          assertAlike(ranks, one, job);
          if (size === 1) assertEquals(ranks[0], one, "alone, nothing is rounded");
        }
      }),
  });
}

Deno.test({
  name: "ddp: the same bits from run to run, and in threads of their own",
  ...outliving,
  fn: () =>
    withDevices("cpu", 3, async (devices) => {
      const job: Job = { ...LORA, steps: 8 };
      const first = await train(devices, job);
      assertEquals(await train(devices, job), first);
      // The sum of a rank's shares does not depend on how they lie in buckets.
      assertEquals(await train(devices, job, { bucketBytes: 1 }), first);
      const module = new URL("./ddp_train.ts", import.meta.url);
      const threads = await runLocal(module, { size: 3, args: ["cpu", job] });
      assertEquals(threads, first);
    }),
});

forEachLauncher(
  "ddp: processes are one device",
  (launcher) =>
    withDevices("cpu", 2, async (devices) => {
      const [one] = await train(devices.slice(0, 1), LORA);
      const size = launcher.name === "mpich" ? 4 : 2;
      const folder = await Deno.makeTempDir();
      const args = [JSON.stringify(LORA), folder];
      const { code, err } = await runJob(launcher, size, "tests/dist/ddp_train.ts", args);
      assertEquals(code, 0, err);
      const outcomes = await readOutcomes(folder, size);
      assertAlike(outcomes, one, LORA);
      // Two numbers have one sum.
      if (size === 2) assertEquals(outcomes, await train(devices, LORA));
      await Deno.remove(folder, { recursive: true });
    }),
);

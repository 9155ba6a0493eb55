/** The collectives of every backend, for one to four ranks. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { initProcessGroup, localGroups, runLocal, singleGroup } from "@graft/ml/dist";
import { checkGroup } from "./cases.ts";
import { forEachLauncher, type Launcher, runJob } from "./launchers.ts";

const rankModule = new URL("./rank.ts", import.meta.url);

/** The reports of a job that checks everything, by rank. */
async function checkedJob(
  launcher: Launcher,
  size: number,
): Promise<Record<string, unknown>[]> {
  const folder = await Deno.makeTempDir();
  const { code, out, err } = await runJob(launcher, size, "tests/dist/rank.ts", ["check", folder]);
  assertEquals(code, 0, out + err);
  const reports = Array.from(
    { length: size },
    async (_, rank) => JSON.parse(await Deno.readTextFile(`${folder}/${rank}.json`)),
  );
  const result = await Promise.all(reports);
  await Deno.remove(folder, { recursive: true });
  return result;
}

Deno.test("dist: a program that nobody launched is a group of one", async () => {
  const group = await initProcessGroup();
  const { backend, rank, size, localRank, localSize } = group;
  assertEquals([backend, rank, size, localRank, localSize], ["single", 0, 1, 0, 1]);
  await checkGroup(group);
  await group.close();
  await group.close(); // a second time does nothing
  await assertRejects(() => group.barrier(), Error, "barrier: the group is closed");
});

Deno.test("dist: ranks in one thread", async () => {
  const alone = singleGroup();
  const seen = new Set([await checkGroup(alone)]);
  await alone.close();
  for (const size of [1, 2, 3, 4]) {
    const groups = localGroups(size);
    const digests = await Promise.all(groups.map(checkGroup));
    await Promise.all(groups.map((group) => group.close()));
    assertEquals(new Set(digests).size, 1);
    seen.add(digests[0]);
  }
  assertEquals(seen.size, 4, "one rank is one rank; other numbers make other sums");
});

Deno.test("dist: ranks as threads give the bits of ranks in one thread", async () => {
  const folder = await Deno.makeTempDir();
  for (const size of [2, 3]) {
    const groups = localGroups(size);
    const [digest] = await Promise.all(groups.map(checkGroup));
    await Promise.all(groups.map((group) => group.close()));
    const digests = await runLocal(rankModule, { size, args: ["check", folder] });
    assertEquals(digests, Array(size).fill(digest));
    const report = JSON.parse(await Deno.readTextFile(`${folder}/1.json`));
    assertEquals(report, {
      backend: "local",
      rank: 1,
      size,
      localRank: 1,
      localSize: size,
      digest,
    });
  }
  await Deno.remove(folder, { recursive: true });
});

forEachLauncher("dist: ranks as processes", async (launcher) => {
  for (const size of [1, 2, 3, 4]) {
    const reports = await checkedJob(launcher, size);
    for (const [rank, report] of reports.entries()) {
      const { digest } = reports[0];
      const rest = { backend: "mpi", rank, size, localRank: rank, localSize: size, digest };
      assertEquals(report, rest);
    }
  }
});

forEachLauncher("dist: two jobs at once, and the same bits again", async (launcher) => {
  const [one, two] = await Promise.all([checkedJob(launcher, 2), checkedJob(launcher, 2)]);
  assertEquals(one, two);
});

forEachLauncher("dist: a library that is not the launcher's is an error", async (launcher) => {
  const env = { GRAFT_MPI_LIBRARY: launcher.wrongLibrary };
  const { code, err } = await runJob(launcher, 2, "tests/dist/rank.ts", ["check", "/nowhere"], {
    env,
  });
  assert(code !== 0);
  const name = launcher.wrongLibrary;
  assert(err.includes("started 2 processes, but the MPI library " + name), err);
  assert(err.includes("set GRAFT_MPI_LIBRARY"), err);
});

forEachLauncher("dist: no library, and no permission, are errors that help", async (launcher) => {
  const work = ["tests/dist/rank.ts", ["check", "/nowhere"]] as const;
  const lost = await runJob(launcher, 1, ...work, { env: { GRAFT_MPI_LIBRARY: "libnone.so" } });
  assert(lost.code !== 0 && lost.err.includes("Tried: libnone.so"), lost.err);
  const permissions = ["--allow-env", "--allow-read"];
  const refused = await runJob(launcher, 1, ...work, { permissions });
  assert(refused.code !== 0 && refused.err.includes("put --allow-ffi"), refused.err);
});

Deno.test("dist: calls that cannot be", async () => {
  const [group] = localGroups(1);
  const bad: [call: () => Promise<unknown>, message: string][] = [
    [
      () => group.broadcast(new Uint8Array(1), { root: 1 }),
      "broadcast: needs a root from 0 to 0, got 1",
    ],
    [() => group.allReduce(new Uint8Array(1), { op: "mean" as "sum" }), "sum or max, got mean"],
    [() => group.allReduce(new Int16Array(1) as never), "needs one of Float32Array, Float64Array"],
    [() => group.allReduce([1] as never), "got 1"],
    [
      () => group.barrier({ timeout: NaN }),
      "barrier: timeout needs a number of ms above 0, got NaN",
    ],
    [() => runLocal(rankModule, { size: 0 }), "needs a size of 1 or more"],
    [() => initProcessGroup({ timeout: 0 }), "timeout needs a number of ms above 0, got 0"],
  ];
  for (const [call, message] of bad) await assertRejects(call, Error, message);
  await group.barrier(); // none of them has harmed it
  await group.close();
});

Deno.test("dist: threads in each of several processes are an error", async () => {
  Deno.env.set("PMI_SIZE", "2");
  try {
    const start = () => runLocal(rankModule, { size: 2, args: ["leave"] });
    await assertRejects(start, Error, "MPICH started 2 of this process");
    Deno.env.set("PMI_SIZE", "1");
    await assertRejects(start, Error, "its group is open"); // it has begun
  } finally {
    Deno.env.delete("PMI_SIZE");
  }
});

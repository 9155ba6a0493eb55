/** Jobs over several hosts: network namespaces, whose counters say what crossed. */

import { assert, assertEquals } from "@std/assert";
import { singleGroup } from "@graft/ml/dist";
import { assertAlike, readOutcomes, withDevices } from "./ddp_ranks.ts";
import { type Job, trainRank } from "./ddp_train.ts";
import { forEachLauncher, runCommand } from "./launchers.ts";
import { Network } from "./network.ts";

/** Runs `fn` over a network of three hosts, or says why there is none. */
async function overNetwork(fn: (network: Network) => Promise<void>): Promise<void> {
  let network: Network;
  try {
    network = await Network.open(3);
  } catch (error) {
    console.log(`skipped: cannot make network namespaces: ${(error as Error).message}`);
    return;
  }
  try {
    await fn(network);
  } finally {
    await network.close();
  }
}

/** Starts a job under the supervisor, which ends a launcher that waits for a host that is cut off. */
function start(command: readonly string[]): Deno.ChildProcess {
  const launch = ["run", "-A", "--quiet", "--no-check", "examples/launch.ts", "--restarts", "0"];
  return new Deno.Command(Deno.execPath(), {
    args: [...launch, "--", ...command],
    cwd: new URL("../../", import.meta.url),
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

forEachLauncher("ddp: three hosts, over the network, are one device", async (launcher) => {
  await overNetwork(async (network) => {
    const job: Job = { method: "full", optimizer: "adamw", steps: 4, rows: 6 };
    const folder = await Deno.makeTempDir();
    const work = [JSON.stringify(job), folder];
    const { code, out, err } = await runCommand(
      network.command(launcher, "tests/dist/ddp_train.ts", work),
    );
    assertEquals(code, 0, out + err);
    const places = await Promise.all(
      [0, 1, 2].map((rank) => Deno.readTextFile(`${folder}/${rank}.place`)),
    );
    assertEquals(places, Array(3).fill("0 of 1"), "each is alone on its machine");
    const outcomes = await readOutcomes(folder, 3);
    await withDevices("cpu", 1, async ([device]) => {
      assertAlike(outcomes, await trainRank(singleGroup(), device, job), job);
    });
    // No way of summing sends less than (N - 1) / N of the bytes from each rank.
    const least = job.steps * outcomes[0].gradients.byteLength * 2 / 3;
    for (const host of [1, 2, 3]) {
      const sent = await network.sent(host);
      assert(sent > least, `${sent} bytes crossed the network, less than ${least}`);
    }
    await Deno.remove(folder, { recursive: true });
  });
});

forEachLauncher("dist: a cut link ends the job, and the watchdog says where", async (launcher) => {
  await overNetwork(async (network) => {
    const env = { GRAFT_DIST_TIMEOUT: "2" };
    const job = start(network.command(launcher, "tests/dist/rank.ts", ["forever"], { env }));
    const out = job.stdout.getReader();
    await out.read(); // the job is going
    out.releaseLock();
    await network.cut(3);
    const texts = Promise.all([new Response(job.stderr).text(), job.stdout.cancel()]);
    const { code } = await job.status;
    await network.killAll(); // the launcher's hand on the host that is cut off holds standard error open
    const [err] = await texts;
    assert(code !== 0, err);
    const call = 'allReduce of 1000 f32 (sum, "bucket 0: lm_head.weight")';
    assert(err.includes(` of 3 has been in ${call}`), err); // whichever rank was the first
  });
});

/** Jobs that go wrong under MPI: each ends, with a code that is not 0 and a reason. */

import { assert, assertEquals } from "@std/assert";
import { forEachLauncher, jobCommand, runCommand, runJob } from "./launchers.ts";

const program = "tests/dist/rank.ts";

for (const moment of ["start", "between", "within", "end"]) {
  forEachLauncher(`dist: a rank is killed: ${moment}`, async (launcher) => {
    for (const who of ["0", "1"]) {
      const { code, err } = await runJob(launcher, 2, program, ["fault", "kill", moment, who]);
      assert(code !== 0, err);
    }
  });
}

forEachLauncher(
  "dist: a rank that exits with 0, or throws, takes the job down",
  async (launcher) => {
    for (const end of ["exit", "throw"]) {
      for (const moment of ["between", "within"]) {
        const { code, err } = await runJob(launcher, 2, program, ["fault", end, moment, "1"]);
        assert(code !== 0, `${end} ${moment}: ${err}`);
        if (end === "throw") assert(err.includes("rank 1 of the test is broken"), err);
      }
    }
  },
);

forEachLauncher("dist: a rank that is stopped, or is busy for ever", async (launcher) => {
  const env = { GRAFT_DIST_TIMEOUT: "2" };
  for (const end of ["stop", "spin"]) {
    const work = ["fault", end, "between", "1"];
    const { code, err } = await runJob(launcher, 2, program, work, { env });
    assert(code !== 0, err);
    const call = 'allReduce of 4194304 f32 (sum, "bucket 1: lm_head.weight")';
    assert(err.includes(`watchdog: rank 0 of 2 has been in ${call}`), err);
  }
});

forEachLauncher("dist: ranks that call different things all say which", async (launcher) => {
  const usual = 'allReduce of 8 f32 (sum, "b")';
  const others = {
    kind: "barrier",
    length: 'allReduce of 7 f32 (sum, "b")',
    label: 'allReduce of 8 f32 (sum, "c")',
    steps: "close",
  };
  const folder = await Deno.makeTempDir();
  for (const [how, other] of Object.entries(others)) {
    const { code, err } = await runJob(launcher, 3, program, ["differ", how, folder]);
    assert(code !== 0, err);
    for (const rank of [0, 1, 2]) {
      const heard = await Deno.readTextFile(`${folder}/${how}.${rank}`);
      const both = `rank 0 called ${usual}, its call 3, and rank 1 called ${other}, its call 3`;
      assert(heard.endsWith(`${both} (this is rank ${rank})`), heard);
    }
  }
  await Deno.remove(folder, { recursive: true });
});

forEachLauncher(
  "dist: a job that is started again ends as if nothing had been",
  async (launcher) => {
    const folder = await Deno.makeTempDir();
    const whole = await runJob(launcher, 3, program, ["train", `${folder}/whole`, "-1"]);
    assertEquals(whole.code, 0, whole.err);
    for (const who of ["0", "2"]) {
      const job = jobCommand(launcher, 3, program, ["train", `${folder}/${who}`, who]);
      const launch = [
        "run",
        "-A",
        "--quiet",
        "--no-check",
        "examples/launch.ts",
        "--restarts",
        "2",
      ];
      const { code, err } = await runCommand([Deno.execPath(), ...launch, "--", ...job]);
      assertEquals(code, 0, err);
      assert(err.includes("restart 1 of 2") && err.includes("done, after 1 restarts"), err);
      assertEquals(await Deno.readFile(`${folder}/${who}`), await Deno.readFile(`${folder}/whole`));
    }
    await Deno.remove(folder, { recursive: true });
  },
);

forEachLauncher(
  "launch: a signal ends the job, and is no reason to start again",
  async (launcher) => {
    const job = jobCommand(launcher, 2, program, ["forever"]);
    const launch = ["run", "-A", "--quiet", "--no-check", "examples/launch.ts", "--", ...job];
    const child = new Deno.Command(Deno.execPath(), {
      args: launch,
      cwd: new URL("../../", import.meta.url),
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const out = child.stdout.getReader();
    await out.read(); // the job is going
    child.kill("SIGTERM");
    out.releaseLock();
    const [{ code }, err] = await Promise.all([
      child.status,
      new Response(child.stderr).text(),
      child.stdout.cancel(),
    ]);
    assert(code !== 0);
    assert(err.includes("SIGTERM was passed on: no restart"), err);
    assert(!err.includes("restart 1"), err);
  },
);

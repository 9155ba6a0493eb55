/** Jobs that go wrong in the threads of one process, and the supervisor alone. */

import { constants } from "node:os";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { localGroups, runLocal, supervise } from "@graft/ml/dist";
import { runCommand } from "./launchers.ts";

const rankModule = new URL("./rank.ts", import.meta.url);

function run(...args: string[]): Promise<unknown[]> {
  return runLocal(rankModule, { size: 3, args });
}

Deno.test("dist: a thread that throws, ends or does not close ends all", async () => {
  const reasons = {
    throw: "rank 1 of 3 failed: rank 1 of the test is broken",
    exit: "rank 1 of 3 ended with 0 before its work was done",
  };
  for (const [end, reason] of Object.entries(reasons)) {
    for (const moment of ["between", "within"]) {
      await assertRejects(() => run("fault", end, moment, "1"), Error, reason);
    }
  }
  await assertRejects(() => run("leave"), Error, "its group is open");
});

Deno.test("dist: a thread that is busy for ever is named by the others", async () => {
  Deno.env.set("GRAFT_DIST_TIMEOUT", "1");
  try {
    const { message } = await assertRejects(() => run("fault", "spin", "between", "1"), Error);
    const call = 'allReduce of 4194304 f32 \\(sum, "bucket 1: lm_head.weight"\\)';
    const pattern = `watchdog: rank [02] of 3 has been in ${call}.*: rank 1 has not come`;
    assert(new RegExp(pattern).test(message), message);
  } finally {
    Deno.env.delete("GRAFT_DIST_TIMEOUT");
  }
});

Deno.test("dist: ranks that call different things all say which; the group is of no more use", async () => {
  const groups = localGroups(3);
  const calls = groups.map((group) =>
    group.rank === 2
      ? group.allReduce(new Float64Array(3), { label: "b" })
      : group.allReduce(new Float32Array(3), { label: "a" })
  );
  for (const [rank, call] of calls.entries()) {
    const { message } = await assertRejects(() => call, Error);
    assertEquals(
      message,
      "dist: every rank must make the same calls in the same order, but rank 0 called allReduce of 3 " +
        'f32 (sum, "a"), its call 1, and rank 2 called allReduce of 3 f64 (sum, "b"), its call 1 ' +
        `(this is rank ${rank})`,
    );
  }
  for (const group of groups) {
    await assertRejects(() => group.barrier(), Error, "every rank must make the same calls");
    await group.close();
  }
});

Deno.test("dist: a collective's own limit", async () => {
  const [first, second] = localGroups(2);
  const late = first.barrier({ timeout: 10, label: "epoch 1" });
  const { message } = await assertRejects(() => late, Error);
  assert(message.includes('rank 0 of 2 has been in barrier ("epoch 1")'), message);
  assert(message.includes("rank 1 has not come"), message);
  // The other rank hears the same reason as soon as it comes.
  assertEquals((await assertRejects(() => second.barrier(), Error)).message, message);
});

Deno.test("dist: a result that came in time is not late because the thread was busy", async () => {
  await run("busy");
});

Deno.test("launch: restarts, their count and their arguments; what cannot be started", async () => {
  const lines: string[] = [];
  const log = (line: string) => lines.push(line.replace(/\d+\.\d s$/, "T s"));
  const script = 'test "$GRAFT_RESTART $*" = "2 --resume" || exit 7';
  const command = ["sh", "-c", script, "job"];
  assertEquals(await supervise(command, { restarts: 2, add: ["--resume"], log }), 0);
  assertEquals(lines, [
    `launch: starts sh -c ${script} job`,
    "launch: ended with code 7 after T s",
    `launch: restart 1 of 2: sh -c ${script} job --resume`,
    "launch: ended with code 7 after T s",
    `launch: restart 2 of 2: sh -c ${script} job --resume`,
    "launch: done, after 2 restarts",
  ]);
  lines.length = 0;
  assertEquals(await supervise(["sh", "-c", "kill -9 $$"], { restarts: 0, log }), 137);
  assertEquals(lines.slice(1), [
    "launch: ended with SIGKILL (code 137) after T s",
    "launch: gives up after 0 restarts",
  ]);
  await assertRejects(() => supervise(["no-such-launcher"], { restarts: 1, log }));
});

Deno.test("launch: a launcher's 0 is a success where its ranks say so", async () => {
  const says = (word: string) => `echo "${word}" >> "$GRAFT_LAUNCH_NOTICE"`;
  /** Sends the supervisor a signal, and ends with 0 when it comes back. */
  const ends = (signal: string, last = "true") =>
    `trap '${last}; exit 0' ${signal}; kill -${signal} $PPID; while :; do sleep 0.02; done`;
  const table: [script: string, code: number, why: string | null][] = [
    [[says("begins"), says("begins"), says("ends 0"), says("ends 0")].join(";"), 0, null],
    [says("begins"), 1, "1 of 1 ranks did not end by themselves: it counts as 1"],
    [says("begins") + ";" + says("ends 130"), 130, "a rank ended with code 130"],
    [says("begins") + ";" + ends("TERM", says("ends 0")), 0, null],
    [says("begins") + ";" + ends("TERM"), 143, "1 of 1 ranks did not end"],
    [says("begins") + ";" + ends("USR1"), 128 + constants.signals.SIGUSR1, "1 of 1 ranks did not"],
    [ends("TERM"), 143, "SIGTERM was to end it and no rank says that it is done"],
    [ends("USR1"), 0, null],
  ];
  for (const [script, expected, why] of table) {
    const lines: string[] = [];
    const log = (line: string) => lines.push(line);
    assertEquals(await supervise(["sh", "-c", script], { restarts: 0, log }), expected, script);
    const end = lines.find((line) => line.includes("ended with code 0"));
    if (why === null) assertEquals(end, undefined);
    else assert(end?.includes(why), lines.join("\n"));
  }
});

Deno.test("launch: command lines that cannot be", async () => {
  const launch = ["run", "-A", "--quiet", "--no-check", "examples/launch.ts"];
  const table: [args: string[], code: number, message: string][] = [
    [["mpiexec", "-n", "2", "a"], 2, "needs -- before the command: deno task launch -- mpiexec"],
    [["--add", "--resume", "--", "true"], 2, "write --add=--resume"],
    [["--add", "--", "true"], 2, "--add needs a word"],
    [["--restarts=-1", "--", "true"], 2, 'a whole number from 0 on, got "-1"'],
    [["--what", "--", "true"], 2, "there is no flag --what"],
    [["--restarts", "1"], 2, "needs a command after --"],
    [["--", "no-such-launcher"], 1, "no-such-launcher"],
  ];
  for (const [args, expected, message] of table) {
    const { code, err } = await runCommand([Deno.execPath(), ...launch, ...args]);
    assertEquals(code, expected, err);
    assert(err.includes(message), err);
  }
});

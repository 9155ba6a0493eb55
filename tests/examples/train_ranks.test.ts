/** The main job on several ranks: the run of one device, its files from rank 0, its ends. */

import { assert, assertEquals } from "@std/assert";
import { openSafetensors } from "@graft/ml";
import { forEachLauncher, jobCommand, type JobEnd, runCommand, runJob } from "../dist/launchers.ts";
import { distance } from "../dist/ddp_ranks.ts";
import { command } from "./command.ts";
import { tinyModel } from "./tiny_model.ts";

const TRAIN = "examples/train.ts";

/** A folder with a short text, and the flags of a small run over it. */
interface Setting {
  readonly folder: string;
  readonly flags: string[];
}

async function makeSetting(): Promise<Setting> {
  const folder = await Deno.makeTempDir();
  const lines = Array.from({ length: 120 }, (_, i) => `Line ${i} of a play: to be, or not to be.`);
  await Deno.writeTextFile(`${folder}/play.txt`, lines.join("\n"));
  const what = ["--model", await tinyModel(), "--data", `${folder}/play.txt`, "--rank", "4"];
  const how = ["--device", "cpu", "--batch", "3", "--seq", "16", "--sample", "3"];
  return { folder, flags: [...what, ...how, "--eval-every", "3", "--lr", "0.01"] };
}

// Processes are what costs time here, so one setting and one run of one device serve all tests.
let shared: Promise<Setting> | undefined;
let alone: Promise<string> | undefined;
const setting = (): Promise<Setting> => shared ??= makeSetting();
const oneDevice = (): Promise<string> => alone ??= runAlone();

Deno.test.afterAll(async () => {
  if (shared) await Deno.remove((await shared).folder, { recursive: true });
});

async function runAlone(): Promise<string> {
  const { folder, flags } = await setting();
  const out = `${folder}/one`;
  assertOneVoice(await run(...flags, "--steps", "6", "--out", out));
  return out;
}

function run(...args: string[]): Promise<JobEnd> {
  return runCommand([Deno.execPath(), "run", "-A", "--quiet", "--no-check", TRAIN, ...args]);
}

/** What a run has written: its losses, and its adapter. */
async function written(out: string): Promise<{ losses: number[]; adapter: Float32Array }> {
  const text = await Deno.readTextFile(`${out}/metrics.jsonl`);
  const lines = text.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(lines.map(({ step }) => step), [0, 1, 2, 3, 4, 5, 6, undefined], "each line once");
  const adapter: number[] = [];
  await using file = await openSafetensors(`${out}/adapter_model.safetensors`);
  for (const name of file.names) {
    adapter.push(...new Float32Array((await file.read(name)).buffer));
  }
  const losses = lines.flatMap((line) =>
    ["loss", "eval_loss", "general_loss"].filter((key) => key in line).map((key) => line[key])
  );
  return { losses, adapter: Float32Array.from(adapter) };
}

async function assertSameRun(out: string, one: string): Promise<void> {
  const [got, expected] = [await written(out), await written(one)];
  got.losses.forEach((loss, i) => {
    assert(Math.abs(loss - expected.losses[i]) < 1e-5, `${loss}, one device ${expected.losses[i]}`);
  });
  const off = distance(got.adapter, expected.adapter);
  assert(off < 1e-5, `the adapters differ by ${off}`);
}

/** No rank but one speaks, and not as to a terminal, which Open MPI gives its ranks. */
function assertOneVoice({ code, out, err }: JobEnd): void {
  assertEquals(code, 0, out + err);
  assert(!out.includes("\x1b"), out);
  assertEquals(out.match(/step 6: held-out loss/g)?.length, 1, out);
  assertEquals(out.match(/done in /g)?.length, 1, out);
}

forEachLauncher("train: several ranks", async (launcher, t) => {
  const { folder, flags } = await setting();
  const [two, parts, killed] = ["two", "parts", "killed"].map((name) =>
    `${folder}/${launcher.name}-${name}`
  );
  const steps = ["--steps", "6", "--out"];
  await t.step("are one device", async () => {
    // Three sequences on two ranks: a share of one, and a share of two.
    assertOneVoice(await runJob(launcher, 2, TRAIN, [...flags, ...steps, two]));
    await assertSameRun(two, await oneDevice());
  });
  if (launcher.name === "mpich") {
    await t.step("go on with what threads began", async () => {
      const begun = await run(...flags, "--devices", "2", "--steps", "3", "--out", parts);
      assertEquals(begun.code, 0, begun.out + begun.err);
      const more = ["--resume", "--device", "cpu", "--eval-every", "3", ...steps, parts];
      assertOneVoice(await runJob(launcher, 2, TRAIN, more));
      await assertSameRun(parts, await oneDevice());
    });
  }
  await t.step("of which one is killed: it costs steps, and no bit", async () => {
    const job = jobCommand(launcher, 2, "tests/examples/train_mortal.ts", [
      ...flags,
      ...steps,
      killed,
    ]);
    const launch = ["run", "-A", "--quiet", "--no-check", "examples/launch.ts", "--add=--resume"];
    const { code, err } = await runCommand([Deno.execPath(), ...launch, "--", ...job]);
    assertEquals(code, 0, err);
    assert(err.includes("restart 1 of"), err);
    for (const name of ["adapter_model.safetensors", "checkpoint/state.safetensors"]) {
      const [one, other] = [two, killed].map((out) => openSafetensors(`${out}/${name}`));
      await using a = await one;
      await using b = await other;
      assertEquals(a.names, b.names);
      for (const key of a.names) assertEquals(await a.read(key), await b.read(key), key);
    }
  });
});

Deno.test("train: ranks end together, on a loss that is not a number or a disk that is full", async () => {
  const { folder, flags } = await setting();
  const both = [...flags, "--devices", "2", "--steps", "6", "--out"];
  const wild = await run(...both, `${folder}/wild`, "--lr", "1e25");
  assertEquals(wild.code, 1, wild.out);
  assert(/step \d+: the loss is NaN/.test(wild.err), wild.err);
  const recorded = (await Deno.readTextFile(`${folder}/wild/metrics.jsonl`)).trimEnd().split("\n");
  const before = Number(wild.err.match(/after step (\d+)/)![1]);
  assertEquals(recorded.length, before + 1);

  // A file stands where the checkpoint's folder has to be made: as much room as a full disk has.
  await Deno.mkdir(`${folder}/full`);
  await Deno.writeTextFile(`${folder}/full/checkpoint`, "");
  const full = await run(...both, `${folder}/full`);
  assertEquals(full.code, 1, full.out);
  assert(/rank \d of 2 failed: .*checkpoint/.test(full.err), full.err);
});

Deno.test("train: Ctrl-C ends all ranks after one step, with a checkpoint", async () => {
  const { folder, flags } = await setting();
  const out = `${folder}/stopped`;
  const args = [...flags, "--devices", "2", "--steps", "100000", "--eval-every", "0"];
  const child = command("train", [...args, "--out", out]).spawn();
  const ended = child.output();
  const steps = async (): Promise<number> => {
    const text = await Deno.readTextFile(`${out}/metrics.jsonl`).catch(() => "");
    return text.trimEnd().split("\n").length - 1;
  };
  let isOver = false;
  ended.then(() => isOver = true);
  while (!isOver && await steps() < 3) await new Promise((resolve) => setTimeout(resolve, 100));
  if (!isOver) child.kill("SIGINT");
  const { code, stdout, stderr } = await ended;
  const decoder = new TextDecoder();
  assertEquals(code, 130, decoder.decode(stdout) + decoder.decode(stderr));
  await using file = await openSafetensors(`${out}/checkpoint/state.safetensors`);
  assertEquals(JSON.parse(file.metadata.state).progress.step, await steps());
});

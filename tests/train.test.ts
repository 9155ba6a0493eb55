/** The main job as a user runs it: files, resuming, Ctrl-C, a loss that is not a number, bad flags. */

import { assert, assertEquals } from "@std/assert";
import { openSafetensors } from "@graft/ml";

const root = new URL("../", import.meta.url).pathname;
const decoder = new TextDecoder();

function command(example: string, args: string[]): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--no-check", `${root}examples/${example}.ts`, ...args],
    cwd: root,
    env: { NO_COLOR: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
}

async function run(example: string, ...args: string[]): Promise<[number, string, string]> {
  const { code, stdout, stderr } = await command(example, args).output();
  return [code, decoder.decode(stdout), decoder.decode(stderr)];
}

/** A folder with a short text, and the flags of a small run over it. */
async function setting(): Promise<{ folder: string; flags: string[] }> {
  const folder = await Deno.makeTempDir();
  const lines = Array.from({ length: 120 }, (_, i) => `Line ${i} of a play: to be, or not to be.`);
  await Deno.writeTextFile(`${folder}/play.txt`, lines.join("\n"));
  const flags = ["--device", "cpu", "--data", `${folder}/play.txt`, "--batch", "2", "--seq", "32"];
  return { folder, flags: [...flags, "--rank", "4", "--eval-every", "0"] };
}

async function metrics(out: string): Promise<Record<string, unknown>[]> {
  const text = await Deno.readTextFile(`${out}/metrics.jsonl`);
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

/** Losses by step. */
async function losses(out: string): Promise<unknown[]> {
  return (await metrics(out)).filter((m) => "loss" in m).map((m) => [m.step, m.loss, m.grad_norm]);
}

Deno.test("train: a resumed run is the unbroken one, to the bit; its adapter generates", async () => {
  const { folder, flags } = await setting();
  const whole = `${folder}/whole`, parts = `${folder}/parts`;
  const [code, out, err] = await run("train", ...flags, "--out", whole, "--steps", "5");
  assertEquals([code, err], [0, ""], out + err);
  assertEquals((await run("train", ...flags, "--out", parts, "--steps", "2"))[0], 0);
  const more = await run("train", "--out", parts, "--device", "cpu", "--steps", "5", "--resume");
  assertEquals(more[0], 0, more[1] + more[2]);
  assertEquals((await losses(parts)).length, 5);
  assertEquals(await losses(parts), await losses(whole));
  for (const name of ["adapter_model.safetensors", "adapter_config.json"]) {
    assertEquals(await Deno.readFile(`${parts}/${name}`), await Deno.readFile(`${whole}/${name}`));
  }

  const lines = await metrics(whole);
  const { summary } = lines.at(-1) as { summary: Record<string, number> };
  assertEquals(lines.length, 7); // the start, five steps, the summary
  assert(summary.eval_loss < summary.base_eval_loss && summary.peak_bytes > 0);
  assertEquals(summary.trainable_parameters, 6 * 4 * 4 * 2 * 288);
  assertEquals(
    Object.keys(lines[5]).sort().join(),
    "eval_loss,general_loss,grad_norm,learning_rate,loss,step,tokens_per_second",
  );
  assert((await Deno.readTextFile(`${whole}/report.html`)).includes("<svg"));

  const generate = [
    "--adapter",
    whole,
    "--prompt",
    "To be",
    "--max-tokens",
    "5",
    "--device",
    "cpu",
  ];
  const [status, text] = await run("generate", ...generate);
  assert(status === 0 && text.startsWith("To be") && text.length > 10, text);
  assertEquals((await run("generate", ...generate))[1], text);

  const past = await run("train", "--out", parts, "--steps", "5", "--resume");
  assert(past[0] === 2 && past[2].includes("has taken 5 steps"), past[2]);
  // A flag that would make it another run.
  const other = await run("train", "--out", parts, "--steps", "9", "--rank", "8", "--resume");
  assertEquals(other[0], 2);
  assert(other[2].includes("--rank 4"), other[2]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train: Ctrl-C leaves a checkpoint to go on from", async () => {
  const { folder, flags } = await setting();
  const out = `${folder}/out`;
  const child = command("train", [...flags, "--out", out, "--steps", "100000"]).spawn();
  const text = child.output();
  for (let steps = 0; steps < 3;) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    steps = await losses(out).then((l) => l.length, () => 0);
  }
  child.kill("SIGINT");
  const { code, stdout } = await text;
  assertEquals(code, 130, decoder.decode(stdout));
  const done = (await losses(out)).length;
  const args = ["--out", out, "--device", "cpu", "--steps", `${done + 1}`, "--resume"];
  assertEquals((await run("train", ...args))[0], 0);
  assertEquals((await losses(out)).length, done + 1);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train: a loss that is not a number stops the run, and the files are from before", async () => {
  const { folder, flags } = await setting();
  const out = `${folder}/out`;
  const [code, , err] = await run("train", ...flags, "--out", out, "--lr", "1e25", "--steps", "9");
  assertEquals(code, 1);
  assert(/^error: step \d+: the loss is NaN/.test(err) && !err.includes("    at "), err);
  const before = Number(err.match(/after step (\d+)/)![1]);
  const recorded = await losses(out);
  assertEquals(recorded.length, before);
  for (const path of [`${out}/adapter_model.safetensors`, `${out}/checkpoint/state.safetensors`]) {
    await using file = await openSafetensors(path);
    for (const name of file.names) {
      const values = new Float32Array((await file.read(name)).buffer);
      assert(values.every((x) => Number.isFinite(x)), `${path}: ${name}`);
    }
  }
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train and generate: flags that cannot be are told, without a stack", async () => {
  const folder = await Deno.makeTempDir();
  await Deno.writeTextFile(`${folder}/empty.txt`, " \n");
  const cases: [string, string[], number, string][] = [
    ["train", ["--rnak", "8"], 2, "there is no flag --rnak"],
    ["train", ["--rank", "0"], 2, '--rank must be a number from 1 on, got "0"'],
    ["train", ["--steps", "2.5"], 2, '--steps must be whole, got "2.5"'],
    ["train", ["--seq", "512"], 2, "--seq must be a number from 2 to 256"],
    ["train", ["--lr"], 2, "--lr needs one value"],
    ["train", ["--method", "qlora"], 2, '--method must be lora or full, got "qlora"'],
    ["train", ["--device", "tpu"], 2, "--device must be auto or cpu or webgpu"],
    ["train", ["--data", `${folder}/none.txt`, "--device", "cpu"], 1, "none.txt"],
    ["train", ["--data", `${folder}/empty.txt`, "--device", "cpu"], 1, "is empty"],
    ["train", ["--target", "q_porj", "--device", "cpu"], 1, "its linear layers are q_proj"],
    ["train", ["--resume", "--out", `${folder}/none`], 1, "none/checkpoint"],
    ["generate", ["--top-p", "2"], 2, '--top-p is out of range: "2"'],
    ["generate", ["--adapter", folder, "--device", "cpu"], 1, "adapter_config.json"],
  ];
  for (const [example, args, code, part] of cases) {
    const result = await run(example, ...args);
    assertEquals(result[0], code, `${args}: ${result[2]}`);
    assert(result[2].startsWith("error: ") && result[2].includes(part), `${args}: ${result[2]}`);
    assert(!result[2].includes("    at "), result[2]);
  }
  assertEquals((await run("train", "--help"))[0], 0);
  await Deno.remove(folder, { recursive: true });
});

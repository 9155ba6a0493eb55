/** The comparison of methods as a user runs it: its files, going on after a signal, bad flags, its words. */

import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { type CompareRun, inWords, table } from "../../examples/compare_report.ts";
import { LEARNING_RATES, type Method } from "../../examples/settings.ts";
import { command, run } from "./command.ts";
import { tinyModel } from "./tiny_model.ts";

Deno.test("compare: stopped by a signal it goes on; a finished run is not run again", async () => {
  const model = await tinyModel(), out = `${model}/out`;
  const lines = Array.from({ length: 60 }, (_, i) => `Line ${i} of a play: to be, or not to be.`);
  await Deno.writeTextFile(`${model}/play.txt`, lines.join("\n"));
  const shared = ["--model", model, "--data", `${model}/play.txt`, "--device", "cpu", "--out", out];
  const sizes = ["--seq", "16", "--batch", "1", "--virtual-tokens", "3", "--lrs", "1"];
  const args = [...shared, ...sizes, "--steps", "300", "--target", "q_proj"];

  const child = command("compare", [...args, "--methods", "lora,full"]).spawn();
  const output = child.output();
  const first = `${out}/lora-${LEARNING_RATES.lora}`, second = `${out}/full-${LEARNING_RATES.full}`;
  const steps = (): Promise<number> =>
    Deno.readTextFile(`${second}/metrics.jsonl`).then((text) => text.split("\n").length, () => 0);
  while (await steps() < 5) await new Promise((resolve) => setTimeout(resolve, 20));
  child.kill("SIGTERM");
  assertEquals((await output).code, 143);
  const done = await Deno.readTextFile(`${first}/run.json`);
  assert("run" in JSON.parse(done));
  assert(!("run" in JSON.parse(await Deno.readTextFile(`${second}/run.json`))));

  const [code, text, err] = await run("compare", ...args, "--methods", "lora,full");
  assertEquals([code, err], [0, ""], text);
  assertStringIncludes(text, `[1/2] lora, learning rate ${LEARNING_RATES.lora}: done before`);
  assert(/resumes after step \d+/.test(text), text);
  assertEquals(await Deno.readTextFile(`${first}/run.json`), done);
  assertStringIncludes(text, "The goal is to come within 0.05");
  const { runs } = JSON.parse(await Deno.readTextFile(`${out}/compare.json`));
  assertEquals(runs.map((one: { method: string }) => one.method), ["lora", "full"]);
  assert(runs[1].trainable === runs[1].total && runs[0].trainable < runs[1].trainable);
  assert(runs[0].peakBytes < runs[1].peakBytes);
  assertEquals(runs[0].base, runs[1].base);
  assertEquals(runs[1].points.map(([step]: [number]) => step), [0, 150, 300]);
  const page = await Deno.readTextFile(`${out}/compare.html`);
  assert(page.includes("<svg") && !page.includes("<script"), page.slice(0, 100));

  // Other settings would not be comparable.
  const other = await run("compare", ...args, "--methods", "lora", "--target", "v_proj");
  assertEquals(other[0], 2);
  assertStringIncludes(
    other[2],
    'holds a run with target "q_proj", this one has "v_proj": choose another --out',
  );
  await Deno.remove(model, { recursive: true });
});

Deno.test("compare: flags that cannot be are told", async () => {
  const cases: [string[], string][] = [
    [
      ["--methods", "lora,qlora"],
      "--methods must be some of lora,dora,prompt,ptuning-v2,full, got",
    ],
    [["--lrs", "1,0"], '--lrs must be numbers above 0 with commas between, got "0"'],
    [["--lr", "0.1"], "there is no flag --lr"],
    [["--steps", "0"], "--steps must be a number from 1 on"],
  ];
  await Promise.all(cases.map(async ([args, part]) => {
    const [code, , err] = await run("compare", ...args);
    assertEquals(code, 2, err);
    assert(err.startsWith("error: ") && err.includes(part) && !err.includes("    at "), err);
  }));
});

/** A run of 20 steps that ends at `loss`, from 8 over `middle`. */
function ended(method: Method, lr: number, middle: number, loss: number): CompareRun {
  return {
    method,
    lr,
    base: { eval_loss: 8, general_loss: 6 },
    last: { eval_loss: loss, general_loss: 6.5 },
    trainable: method === "full" ? 1000 : 10,
    total: 1000,
    peakBytes: 2 ** 20,
    seconds: 1,
    points: [[0, 8], [10, middle], [20, loss]],
  };
}

Deno.test("compare: each method counts at its best rate; a missed goal is told with what explains it", () => {
  const comparison = (...runs: CompareRun[]): Parameters<typeof inWords>[0] => ({
    date: "",
    command: "",
    runs,
  });
  const full = [0.001, 0.002, 0.003].map((lr, i) => ended("full", lr, 6, [5.2, 5, 5.4][i]));
  const near = ended("lora", 0.01, 6, 5.04), far = ended("lora", 0.02, 7, 5.5);
  const rows = table(comparison(far, near, ...full)).split("\n").slice(2);
  assertEquals(rows.map((row) => row.split(/ +/)[1]), ["0.01", "0.002"]);

  const [reached] = inWords(comparison(far, near, ...full));
  assertStringIncludes(
    reached,
    "LoRA ends at 5.040 nats a token, training all at 5.000: 0.040 more.",
  );
  assert(reached.endsWith("The goal is to come within 0.05: reached."));

  // Only far: its one rate is an end of the grid, and it fell by 1.5 late where the other fell by 1.
  const [missed] = inWords(comparison(far, ...full));
  assertStringIncludes(missed, "within 0.05: missed.");
  assertStringIncludes(missed, "the best rate of LoRA, 0.02, is the only one tried");
  assert(!missed.includes("the best rate of training all"), missed);
  assertStringIncludes(missed, "LoRA still falls faster (1.500 in the second half, training all");
  assertStringIncludes(missed, "as much again would close 100 % of the gap");
  assertStringIncludes(missed, "100 times fewer parameters");

  const failed = { method: "prompt", lr: 9, failed: "step 1: the loss is NaN" } as const;
  const [told, alone] = inWords(comparison(failed, ended("ptuning-v2", 1, 6, 5)));
  assertEquals(told, "No run of prompt came to an end: its loss was not a number.");
  assertEquals(alone, undefined);
});

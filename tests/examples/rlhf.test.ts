/** `deno task rlhf` as a user runs it: all stages, resuming, Ctrl-C, a KL or a loss that explodes. */

import { assert, assertEquals } from "@std/assert";
import { openSafetensors } from "@graft/ml";
import { escape } from "../../examples/charts.ts";
import { sentiment } from "../../examples/rlhf/sentiment.ts";
import { command, run } from "./command.ts";

const decoder = new TextDecoder();
// deno-fmt-ignore
const SMALL = [
  "--device", "cpu", "--sft-steps", "2", "--prompts", "16", "--held-out", "4", "--reward-epochs", "1",
  "--ppo-steps", "2", "--rollouts", "8", "--ppo-lr", "0.001",
];

async function records(out: string, stage: string): Promise<Record<string, number>[]> {
  const text = await Deno.readTextFile(`${out}/${stage}/metrics.jsonl`);
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

/** A copy of a run's folder as it is after the stages before `stage`. */
async function before(stage: string, from: string, to: string): Promise<void> {
  const copied = ["sft", "reward", "best-of-n", "ppo", "ppo-ptx"];
  await Deno.mkdir(to);
  for (const name of ["settings.json", "answers.jsonl"]) {
    await Deno.copyFile(`${from}/${name}`, `${to}/${name}`);
  }
  for (const folder of copied.slice(0, copied.indexOf(stage))) {
    await Deno.mkdir(`${to}/${folder}`);
    for await (const { name } of Deno.readDir(`${from}/${folder}`)) {
      await Deno.copyFile(`${from}/${folder}/${name}`, `${to}/${folder}/${name}`);
    }
  }
}

Deno.test("rlhf: the recipe runs, resumes to the bit, and stops where it must", async (t) => {
  const folder = await Deno.makeTempDir();
  const whole = `${folder}/whole`;

  await t.step("all stages in one go", async () => {
    const [code, out, err] = await run("rlhf", ...SMALL, "--out", whole);
    assertEquals([code, err], [0, ""], out + err);
    for (const part of ["fine-tuned", "best of 4", "PPO-ptx", "general loss"]) {
      assert(out.includes(part), out);
    }
    const report = await Deno.readTextFile(`${whole}/report.html`);
    const { last } = JSON.parse(await Deno.readTextFile(`${whole}/ppo-ptx/samples.json`));
    // deno-fmt-ignore
    const parts = [
      "best of 4", "Reward (", "KL to the fine-tuned model", "Entropy", "Loss on general text", "<svg", escape(last[0]),
    ];
    for (const part of parts) assert(report.includes(part), part);
    // The table of metrics, and with ptx the loss of that.
    const [, first] = await records(whole, "ppo-ptx");
    // deno-fmt-ignore
    const names = [
      "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
      "objective/scores", "policy/approxkl", "policy/clipfrac", "policy/entropy", "loss/policy",
      "loss/value", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "loss/ptx",
    ];
    for (const name of names) assert(Number.isFinite(first[name]), name);
    // The first rollout is the reference's own.
    assertEquals(first["objective/kl"], 0);
    const [plain, ptx] = [await records(whole, "ppo"), await records(whole, "ppo-ptx")];
    assertEquals(plain[0].general_loss, ptx[0].general_loss);
    assert(plain.at(-1)!.general_loss > ptx.at(-1)!.general_loss);
  });

  await t.step(
    "stopped by Ctrl-C in the middle of PPO, it goes on to the same numbers",
    async () => {
      const parts = `${folder}/parts`;
      await before("ppo", whole, parts);
      const child = command("rlhf", ["--resume", "--out", parts]).spawn();
      const output = child.output();
      const started = `${parts}/ppo/metrics.jsonl`;
      while (!await Deno.stat(started).then(() => true, () => false)) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      child.kill("SIGINT");
      const { code, stdout } = await output;
      assertEquals(code, 130, decoder.decode(stdout));
      const done = (await records(parts, "ppo")).length;
      assert(done < 3, "it was stopped in the middle");
      const [again, out, err] = await run("rlhf", "--resume", "--out", parts, "--until", "ppo");
      assertEquals([again, err], [0, ""], out + err);
      assert(out.includes("sft: done before") && out.includes("reward: done before"), out);
      assert(out.includes(`wrote ${parts}/report.html`), out);
      assertEquals(await records(parts, "ppo"), await records(whole, "ppo"));
    },
  );

  await t.step("sampling that was cut off goes on to the same answers", async () => {
    const out = `${folder}/cut`;
    await before("reward", whole, out);
    const all = await Deno.readTextFile(`${out}/answers.jsonl`);
    await Deno.writeTextFile(`${out}/answers.jsonl`, all.slice(0, all.length / 2));
    const [code, , err] = await run("rlhf", "--resume", "--out", out, "--until", "answers");
    assertEquals([code, err], [0, ""]);
    assertEquals(await Deno.readTextFile(`${out}/answers.jsonl`), all);
  });

  await t.step("a KL that explodes stops it, with the step and a checkpoint", async () => {
    const out = `${folder}/kl`;
    await before("ppo", whole, out);
    const [code, , err] = await run("rlhf", "--resume", "--out", out, "--kl-limit", "0");
    assertEquals(code, 1);
    assert(/^error: PPO, step 2: the KL is \d+\.\d+, above --kl-limit 0; /.test(err), err);
    assert(err.includes(`${out}/ppo holds the run as it was after step 1`), err);
    assert((await Deno.readTextFile(`${out}/report.html`)).includes("KL to"), "and is drawn");
    await finiteCheckpoint(`${out}/ppo`);
  });

  await t.step(
    "a loss that is not a number stops it, and the checkpoint is from before",
    async () => {
      const out = `${folder}/nan`;
      await before("ppo", whole, out);
      const settings = JSON.parse(await Deno.readTextFile(`${out}/settings.json`));
      await Deno.writeTextFile(
        `${out}/settings.json`,
        JSON.stringify({ ...settings, ppoLr: 1e30 }),
      );
      const [code, , err] = await run("rlhf", "--resume", "--out", out, "--until", "ppo");
      assertEquals(code, 1);
      assert(/^error: PPO, step 1: .* is (NaN|-?Infinity)/.test(err), err);
      await finiteCheckpoint(`${out}/ppo`);
    },
  );

  await t.step("a person's rankings take the rule's place; bad ones are told", async () => {
    const out = `${folder}/person`, file = `${folder}/rankings.jsonl`;
    await before("reward", whole, out);
    const lines = (await Deno.readTextFile(`${out}/answers.jsonl`)).trimEnd().split("\n");
    const asked = lines.map((line) => JSON.parse(line) as { id: string; answers: string[] });
    const line = ({ id, answers }: typeof asked[number]): string =>
      JSON.stringify({ id, ranks: answers.map((text) => -text.length) });
    await Deno.writeTextFile(file, asked.map(line).join("\n"));
    const args = ["--resume", "--out", out, "--until", "reward", "--rankings", file];
    const [code, , err] = await run("rlhf", ...args);
    assertEquals([code, err], [0, ""]);
    assert((await records(out, "reward"))[1].loss !== (await records(whole, "reward"))[1].loss);

    // What it has learnt cannot be ranked otherwise, and a fresh run would sample other answers.
    await Deno.writeTextFile(file, line(asked[0]));
    const [changed, , why] = await run("rlhf", ...args);
    assert(changed === 1 && why.includes("learns from other ranks than those in"), why);
    const [fresh, , gone] = await run("rlhf", ...SMALL, "--out", out, "--rankings", file);
    assert(fresh === 2 && gone.includes("there are answers in"), gone);
    await Deno.stat(`${out}/answers.jsonl`);
    const [none, , missing] = await run(
      "rlhf",
      ...SMALL,
      "--out",
      `${out}/new`,
      "--rankings",
      `${file}.no`,
    );
    assert(none === 1 && missing.startsWith("error: --rankings: cannot read"), missing);

    await Deno.remove(`${out}/reward`, { recursive: true });
    await Deno.writeTextFile(file, '{"id": "prompt-99", "ranks": [0, 1, 2, 3]}\n');
    const bad = await run("rlhf", ...args);
    assert(bad[0] === 1 && bad[2].includes("rankings.jsonl line 1: there is no prompt"), bad[2]);
    await Deno.writeTextFile(file, line(asked[0]));
    const few = await run("rlhf", ...args);
    assert(few[0] === 1 && few[2].includes("rank more"), few[2]);
  });

  await t.step("flags that cannot be are told, without a stack", async () => {
    const cases: [string[], number, string][] = [
      [["--ppo-step", "3"], 2, "there is no flag --ppo-step"],
      [["--prompts", "3"], 2, '--prompts must be a number from 16 on, got "3"'],
      [["--ppo-lr", "0"], 2, '--ppo-lr must be a number above 0, got "0"'],
      [["--rollouts", "7"], 2, "--rollouts must be even"],
      [["--until", "dpo"], 2, "--until must be"],
      [["--resume", "--out", whole, "--seed", "5"], 2, "began with --seed 0"],
      [["--resume", "--out", `${folder}/none`], 1, "none/settings.json"],
      [["--prompts", "100000", "--device", "cpu", "--out", `${folder}/x`], 1, "too few to rank"],
    ];
    for (const [args, code, part] of cases) {
      const [got, , err] = await run("rlhf", ...args);
      assertEquals(got, code, err);
      assert(err.includes(part) && !err.includes("    at "), err);
    }
  });
  await Deno.remove(folder, { recursive: true });
});

async function finiteCheckpoint(folder: string): Promise<void> {
  await using file = await openSafetensors(`${folder}/checkpoint.safetensors`);
  assert(file.names.length > 0);
  for (const name of file.names) {
    const values = new Float32Array((await file.read(name)).buffer);
    assert(values.every((x) => Number.isFinite(x)), name);
  }
}

Deno.test("rlhf: the rule counts each word once, whatever its case", () => {
  assertEquals(sentiment("Happy, happy HAPPY! The sad king smiled."), 1);
  assertEquals(sentiment("He was unhappy and wept."), -2);
  assertEquals(sentiment(""), 0);
});

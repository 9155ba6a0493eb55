/** The main job as a user runs it: files, resuming, signals, a loss that is not a number, bad flags. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { init, openSafetensors } from "@graft/ml";
import { loadTokenizer } from "@graft/ml/data";
import { type Base, loadBase } from "../../examples/base.ts";
import { Progress } from "../../examples/log.ts";
import { FLAGS, readFlags, resumed, settingsFrom } from "../../examples/settings.ts";
import { loadTexts } from "../../examples/texts.ts";
import { type Outcome, train } from "../../examples/train.ts";
import { command, run } from "./command.ts";
import { tinyModel } from "./tiny_model.ts";

const root = new URL("../../", import.meta.url).pathname;
const decoder = new TextDecoder();

/** A folder with a short text, and the flags of a small run over it. */
async function setting(
  model = "stories15M",
): Promise<{ folder: string; flags: string[] }> {
  const folder = await Deno.makeTempDir();
  const lines = Array.from({ length: 120 }, (_, i) => `Line ${i} of a play: to be, or not to be.`);
  await Deno.writeTextFile(`${folder}/play.txt`, lines.join("\n"));
  const text = ["--data", `${folder}/play.txt`, "--batch", "2", "--seq", "32"];
  const flags = ["--device", "cpu", "--model", model, ...text, "--rank", "4", "--eval-every", "0"];
  return { folder, flags };
}

async function metrics(out: string): Promise<Record<string, unknown>[]> {
  const text = await Deno.readTextFile(`${out}/metrics.jsonl`);
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

/** Losses by step. */
async function losses(out: string): Promise<unknown[]> {
  return (await metrics(out)).filter((m) => "loss" in m).map((m) => [m.step, m.loss, m.grad_norm]);
}

/** Losses before the first step. */
async function losses0(out: string): Promise<unknown> {
  return (await metrics(out))[0];
}

Deno.test("train: a resumed run is the unbroken one, to the bit; its adapter generates", async () => {
  const { folder, flags } = await setting(await tinyModel());
  flags.push("--sample", "5");
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
  // Two layers of rank 4: queries and the output 16 by 16, keys and values 16 by 8, the MLP 16 by 32.
  assertEquals(summary.trainable_parameters, 2 * 4 * (2 * 32 + 2 * 24 + 3 * 48));
  assert(out.includes("lora: trainable params: 2,048 || all params: "), out);
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
  assert(status === 0 && text.startsWith("To be") && text.length > 7, text);
  assertEquals((await run("generate", ...generate))[1], text);

  const past = await run("train", "--out", parts, "--steps", "5", "--resume");
  assert(past[0] === 2 && past[2].includes("has taken 5 steps"), past[2]);
  // A flag that would make it another run.
  const other = await run("train", "--out", parts, "--steps", "9", "--rank", "8", "--resume");
  assertEquals(other[0], 2);
  assert(other[2].includes("--rank 4"), other[2]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train: SIGINT and SIGTERM leave a checkpoint to go on from", async () => {
  const { folder, flags } = await setting(await tinyModel());
  await Promise.all(
    ([["SIGINT", 130], ["SIGTERM", 143]] as const).map(async ([signal, expected]) => {
      const out = `${folder}/${signal}`;
      const child = command("train", [...flags, "--out", out, "--steps", "100000"]).spawn();
      const text = child.output();
      for (let steps = 0; steps < 3;) {
        await new Promise((resolve) => setTimeout(resolve, 100));
        steps = await losses(out).then((l) => l.length, () => 0);
      }
      child.kill(signal);
      const { code, stdout } = await text;
      assertEquals(code, expected, decoder.decode(stdout));
      const done = (await losses(out)).length;
      const args = ["--out", out, "--device", "cpu", "--steps", `${done + 1}`, "--resume"];
      assertEquals((await run("train", ...args))[0], 0);
      assertEquals((await losses(out)).length, done + 1);
    }),
  );
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train: a signal that comes twice at once is one, a later one ends the process", async () => {
  // A listener of its own says that each has come; a clock of its own says when.
  const program = `
    import { StopSignals } from "./examples/stop.ts";
    const clock = [5000, 5700, 6400];
    performance.now = () => clock.shift();
    Deno.addSignalListener("SIGTERM", () => console.log("heard"));
    const signals = new StopSignals((signal) => console.log("told", signal, signals.code));
    setInterval(() => {}, 1000); // listeners keep no process
    console.log("ready");
  `;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["eval", "--no-check", program],
    cwd: root,
    stdin: "null",
    stdout: "piped",
  }).spawn();
  let text = "";
  for await (const part of child.stdout.pipeThrough(new TextDecoderStream())) {
    text += part;
    for (const _ of part.matchAll(/ready|heard/g)) {
      if (text.match(/heard/g)?.length !== 3) child.kill("SIGTERM");
    }
  }
  assertEquals(text, "ready\nheard\ntold SIGTERM 143\nheard\nheard\n");
  assertEquals((await child.status).code, 143);
});

Deno.test("train: a loss that is not a number stops the run, and the files are from before", async () => {
  const { folder, flags } = await setting(await tinyModel());
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

Deno.test("train: every method, resumed, is the unbroken run to the bit; its files generate", async () => {
  const model = await tinyModel();
  const { folder } = await setting();
  const quiet = new class extends Progress {
    override line(): void {}
    override step(): void {}
  }();
  const adapter = ["adapter_config.json", "adapter_model.safetensors"];
  const cases: [name: string, given: object, files: string[]][] = [
    ["dora", { method: "dora" }, adapter],
    ["qlora", { method: "lora", quantize: "nf4", target: "all-linear,lm_head" }, adapter],
    ["prompt", { method: "prompt" }, adapter],
    ["ptuning-v2", { method: "ptuning-v2" }, adapter],
    ["full", { method: "full" }, [
      "model.safetensors",
      "config.json",
      "tokenizer.json",
      "tokenizer_config.json",
    ]],
  ];
  for (const [method, given, names] of cases) {
    const run = async (out: string, steps: number, resume = false): Promise<Outcome> => {
      const shared = { model, steps, data: `${folder}/play.txt`, out, device: "cpu" };
      const settings = settingsFrom({
        ...shared,
        ...given,
        seq: 16,
        batch: 2,
        "virtual-tokens": 3,
        "eval-every": 0,
        "sample": 3,
      });
      return await train({ ...settings, resume }, { log: quiet });
    };
    const whole = `${folder}/${method}`, parts = `${folder}/${method}-parts`;
    const outcome = await run(whole, 4);
    assert(outcome.last.eval_loss < outcome.base.eval_loss, method);
    // The base is the model itself, whatever is put before its text.
    const base = await losses0(whole);
    if (method !== "qlora") assertEquals(base, await losses0(`${folder}/dora`), method);
    await run(parts, 2);
    const again = await run(parts, 4, true);
    assertEquals(again.last, outcome.last, method);
    assertEquals(await losses(parts), await losses(whole), method);
    for (const name of names) {
      const [one, other] = [`${parts}/${name}`, `${whole}/${name}`];
      assertEquals(await Deno.readFile(one), await Deno.readFile(other), `${method}: ${name}`);
    }
  }

  const { target_modules } = JSON.parse(
    await Deno.readTextFile(`${folder}/qlora/adapter_config.json`),
  );
  assertEquals(target_modules.length, 8); // four of attention, three of the MLP, the output layer
  // An adapter's base is the one it names; a whole model needs none.
  for (
    const [flag, method, ...more] of [
      ["--adapter", "ptuning-v2"],
      ["--adapter", "qlora", "--quantize", "nf4"],
      ["--model", "full"],
    ]
  ) {
    const args = [flag, `${folder}/${method}`, ...more, "--max-tokens", "3", "--device", "cpu"];
    const [code, text, err] = await run("generate", ...args, "--prompt", "To be");
    assert(code === 0 && text.startsWith("To be") && text.length > 7, text + err);
  }
  await Deno.remove(folder, { recursive: true });
  await Deno.remove(model, { recursive: true });
});

Deno.test("train: --config is the flags; flags stand over it", async () => {
  const { folder, flags } = await setting(); // stories15M, once
  const config = `${folder}/best.json`, out = `${folder}/out`;
  const target = ["q_proj", "v_proj"];
  await Deno.writeTextFile(config, JSON.stringify({ rank: 2, lr: 0.01, target, steps: 7, out }));
  const args = ["--config", config, "--steps", "1", "--sample", "0"];
  const without = flags.slice(0, flags.indexOf("--rank"));
  const [code, , err] = await run("train", ...without, ...args, "--eval-every", "0");
  assertEquals([code, err], [0, ""]);
  const adapter = JSON.parse(await Deno.readTextFile(`${out}/adapter_config.json`));
  assertEquals([adapter.r, adapter.target_modules], [2, target]);
  const [step] = (await metrics(out)).filter((record) => "loss" in record);
  assertEquals([step.step, step.learning_rate], [1, 0.01 / 10]); // the first step of warm-up
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train: of a conversation what the assistant says is learnt, of a prompt its completion", async () => {
  const folder = await tinyModel(), data = `${folder}/talk.jsonl`;
  const messages = [
    { role: "user", content: "Who goes there?" },
    { role: "assistant", content: "A friend." },
  ];
  const lines = [
    { messages },
    { prompt: "One plus one is", completion: " two" },
    { messages },
    { messages },
  ];
  await Deno.writeTextFile(data, lines.map((line) => JSON.stringify(line)).join("\n"));
  await Deno.writeTextFile(
    `${folder}/chat_template.jinja`,
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}" +
      "{% if add_generation_prompt %}assistant:{% endif %}",
  );
  const tokenizer = await loadTokenizer(folder);
  const base = { folder, tokenizer } as Base;
  const { train: windows } = await loadTexts(settingsFrom({ data }), base, 16);
  const learnt = Array.from({ length: windows.length }, (_, i) => {
    const { targets } = windows.window(i, 0);
    return tokenizer.decode(targets.filter((id) => id >= 0)).trim();
  });
  assertEquals(learnt.slice(0, 2), ["A friend.", "two"]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train and generate: flags that cannot be are told, without a stack", async () => {
  const folder = await Deno.makeTempDir();
  await Deno.writeTextFile(`${folder}/empty.txt`, " \n");
  const config = async (name: string, text: string): Promise<string[]> => {
    await Deno.writeTextFile(`${folder}/${name}.json`, text);
    return ["--config", `${folder}/${name}.json`];
  };
  const cases: [string, string[], number, string][] = [
    ["train", ["--rnak", "8"], 2, "there is no flag --rnak"],
    ["train", ["--rank", "0"], 2, '--rank must be a number from 1 on, got "0"'],
    ["train", ["--alpha", "0"], 2, '--alpha must be a number above 0, got "0"'],
    ["train", await config("lr", '{"lr": 0}'), 2, 'lr.json: "lr" must be a number above 0, got 0'],
    ["train", ["--steps", "2.5"], 2, '--steps must be whole, got "2.5"'],
    ["train", ["--lr"], 2, "--lr needs one value"],
    ["train", ["--lr", ""], 2, "--lr needs one value"],
    ["train", ["--method", "qlora"], 2, "--method must be lora or dora or prompt or ptuning-v2 or"],
    ["train", ["--quantize", "int8", "--method", "full"], 2, "--method full trains them"],
    ["train", ["--device", "tpu"], 2, "--device must be auto or cpu or webgpu"],
    ["train", await config("key", '{"rnak": 8}'), 2, 'key.json: there is no setting "rnak"; there'],
    [
      "train",
      await config("rank", '{"rank": "8"}'),
      2,
      'rank.json: "rank" must be a number from 1',
    ],
    ["train", await config("broken", '{"rank": 8'), 2, "broken.json: "],
    ["train", ["--config", `${folder}/none.json`], 2, "none.json: "],
    ["train", ["--data", `${folder}/none.txt`, "--device", "cpu"], 1, "none.txt"],
    ["train", ["--data", `${folder}/empty.txt`, "--device", "cpu"], 1, "is empty"],
    ["train", ["--resume", "--out", `${folder}/none`], 1, "none/checkpoint"],
    ["generate", ["--top-p", "2"], 2, '--top-p is out of range: "2"'],
    ["generate", ["--adapter", folder, "--device", "cpu"], 1, "adapter_config.json"],
  ];
  await check(cases);
  assertEquals((await run("train", "--help"))[0], 0);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("train and generate: models and files that cannot be are told, without a stack", async () => {
  const folder = await Deno.makeTempDir(), model = await tinyModel();
  /** The model's folder, changed. */
  const changed = async (name: string, file: string, text: string): Promise<string[]> => {
    const path = `${folder}/${name}`;
    await Deno.mkdir(path);
    for await (const { name: one } of Deno.readDir(model)) {
      await Deno.copyFile(`${model}/${one}`, `${path}/${one}`);
    }
    await Deno.writeTextFile(`${path}/${file}`, text);
    return ["--model", path, "--device", "cpu"];
  };
  const config = await Deno.readTextFile(`${model}/config.json`);
  const withConfig = (name: string, change: object): Promise<string[]> =>
    changed(name, "config.json", JSON.stringify({ ...JSON.parse(config), ...change }));
  const index = { weight_map: { "model.norm.weight": "model-00002-of-00002.safetensors" } };
  const sharded = await changed("shard", "model.safetensors.index.json", JSON.stringify(index));
  await Deno.remove(`${folder}/shard/model.safetensors`);
  const talk = `${folder}/talk.jsonl`;
  const messages = [{ role: "user", content: "Hi" }, { role: "assistant", content: "Ho" }];
  await Deno.writeTextFile(talk, JSON.stringify({ messages }));
  const prompt = { peft_type: "PROMPT_TUNING", num_virtual_tokens: 4, token_dim: 99 };
  await Deno.writeTextFile(`${folder}/adapter_config.json`, JSON.stringify(prompt));

  await Deno.mkdir(`${folder}/moved`);
  const moved = { ...prompt, base_model_name_or_path: `${folder}/gone` };
  await Deno.writeTextFile(`${folder}/moved/adapter_config.json`, JSON.stringify(moved));

  const other = await tinyModel(100);
  const own = ["--model", model, "--device", "cpu"];
  await check([
    ["train", ["--model", `${folder}/nowhere`, "--device", "cpu"], 1, "nowhere"],
    ["train", ["--model", folder, "--device", "cpu"], 1, "is an adapter: a model is needed"],
    ["train", [...own, "--threads", "0"], 2, "--threads must be a whole number from 1 on"],
    ["train", sharded, 1, "model-00002-of-00002.safetensors"],
    ["train", await withConfig("kind", { architectures: ["MambaForCausalLM"] }), 1, "LlamaForCaus"],
    ["train", await withConfig("small", { vocab_size: 100 }), 1, "[100, 16]"],
    [
      "train",
      ["--model", other, "--device", "cpu"],
      1,
      "32000 tokens and the model 100: tokenizer",
    ],
    ["train", await changed("words", "tokenizer.json", "{}"), 1, "tokenizer.json"],
    ["train", [...own, "--target", "q_porj"], 1, "its linear layers are q_proj"],
    ["train", [...own, "--target", "q_proj,v_porj"], 1, '["v_porj"] names no layer'],
    ["train", [...own, "--target", ".*"], 1, "adapts Linear, Conv1D and Embedding layers"],
    ["train", [...own, "--seq", "65"], 2, "--seq must be from 2 to 64, got 65"],
    ["train", [...own, "--method", "prompt", "--seq", "64"], 2, "--virtual-tokens takes 16"],
    [
      "train",
      [...own, "--method", "prompt", "--virtual-tokens", "99"],
      2,
      "too few positions are left for a text",
    ],
    ["train", [...own, "--method", "full", "--out", model], 2, "is the folder of the model itself"],
    ["train", [...own, "--data", talk], 1, "needs chat_template.jinja"],
    ["generate", ["--adapter", `${folder}/moved`], 1, "--model says where it is now"],
    ["generate", [...own, "--adapter", folder], 1, "it is for another base model"],
    ["generate", [...own, "--adapter", model], 1, "holds a model, no adapter"],
    ["generate", [...own, "--adapter", `${folder}/gone`], 1, "there is no such folder"],
    ["generate", [...own, "--chat"], 1, "needs chat_template.jinja"],
  ]);
  // A tokenizer that is smaller by far may be another model's: no error, since models do round up.
  const wide = await tinyModel(40000), told: string[] = [];
  const device = await init({ device: "cpu" });
  await loadBase(model, (text) => told.push(text));
  assertEquals(told, []);
  await loadBase(wide, (text) => told.push(text));
  assert(told.length === 1 && told[0].includes("32000 tokens and the model 40000"), `${told}`);
  await device.close();
  for (const one of [folder, model, wide, other]) await Deno.remove(one, { recursive: true });
});

/** Commands that end with a code and one error, without a stack. */
async function check(cases: [string, string[], number, string][]): Promise<void> {
  const waiting = [...cases];
  const worker = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const [example, args, code, part] = next;
      const result = await run(example, ...args);
      assertEquals(result[0], code, `${args}: ${result[1]}${result[2]}`);
      assert(result[2].startsWith("error: ") && result[2].includes(part), `${args}: ${result[2]}`);
      assert(!result[2].includes("    at "), result[2]);
    }
  };
  await Promise.all([worker(), worker(), worker()]);
}

Deno.test("train: lost before its first checkpoint and started again, a run begins anew", async () => {
  const { given } = await readFlags(["--out", await Deno.makeTempDir()], FLAGS, []);
  await assertRejects(() => resumed(given), Error, "state.safetensors");
  Deno.env.set("GRAFT_RESTART", "1");
  try {
    assertEquals((await resumed(given)).resume, false);
  } finally {
    Deno.env.delete("GRAFT_RESTART");
  }
});

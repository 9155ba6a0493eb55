/** The search as a user runs it: trials as processes, pruning, a stop and going on, bad flags. */

import { assert, assertEquals } from "@std/assert";
import { command, run } from "./command.ts";
import { tinyModel } from "./tiny_model.ts";

/** The events of a study, but for what its trials report on the way. */
async function events(out: string): Promise<string[]> {
  const lines = (await Deno.readTextFile(`${out}/study.jsonl`)).trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line).event).filter((event) => event !== "report");
}

Deno.test("tune task: stopped in a trial, gone on with, ended with a best.json that train takes", async () => {
  const folder = await Deno.makeTempDir();
  const out = `${folder}/out`, play = `${folder}/play.txt`;
  const lines = Array.from({ length: 60 }, (_, i) => `Line ${i} of a play: to be, or not to be.`);
  await Deno.writeTextFile(play, lines.join("\n"));
  const model = await tinyModel();
  const small = [
    "--model",
    model,
    "--device",
    "cpu",
    "--data",
    play,
    "--batch",
    "2",
    "--seq",
    "16",
  ];
  const targets = ["--targets", "k_proj;o_proj,up_proj"];
  const flags = ["--out", out, "--steps", "2", "--sampler", "random", ...targets, "--", ...small];

  const child = command("tune", ["--trials", "2", ...flags]).spawn();
  while (!(await events(out).catch((): string[] => [])).includes("ask")) {
    await new Promise((done) => setTimeout(done, 50));
  }
  child.kill("SIGINT");
  const stopped = await child.output();
  assertEquals(stopped.code, 130, new TextDecoder().decode(stopped.stderr));
  assertEquals(await events(out), ["study", "ask"]);

  // The trial that was stopped again, and another beside it.
  const [code, text, error] = await run(
    "tune",
    ...["--trials", "2", "--parallel", "2", "--final", "1", ...flags],
  );
  assertEquals([code, error], [0, ""], text);
  assertEquals(await events(out), ["study", "ask", "ask", "ask", "tell", "tell"]);
  const [other, , why] = await run("tune", "--trials", "2", ...flags, "--seed", "3");
  assert(other === 2 && why.includes("has seed 0, asked for is 3: choose another --out"), why);
  const best = JSON.parse(await Deno.readTextFile(`${out}/best.json`));
  assertEquals(
    Object.keys(best).sort().join(),
    "alpha,batch,data,device,lr,model,rank,seq,target",
  );
  assert(["k_proj", "o_proj,up_proj"].includes(best.target), best.target);
  // The final run has the best trial's settings.
  const adapter = JSON.parse(await Deno.readTextFile(`${out}/final/adapter_config.json`));
  assertEquals([adapter.r, adapter.lora_alpha], [best.rank, best.alpha]);
  const more = ["--steps", "1", "--out", `${folder}/trained`];
  const [trained, , err] = await run("train", "--config", `${out}/best.json`, ...more);
  assertEquals(trained, 0, err);
  const again = JSON.parse(await Deno.readTextFile(`${folder}/trained/adapter_config.json`));
  assertEquals(again, adapter);
  const report = await Deno.readTextFile(`${out}/report.html`);
  for (const name of ["History", "lr", "rank", "target", "Parallel coordinates", "trial 0"]) {
    assert(report.includes(name), name);
  }
});

Deno.test("tune task: bad flags are one line and exit code 2", async () => {
  for (
    const [args, message] of [
      [["--trials", "0"], "--trials must be a whole number from 1 on"],
      [["--sampler", "magic"], "--sampler must be tpe or random or grid"],
      [["--rank", "8"], "there is no flag --rank"],
      [["--", "--lr", "1"], "--lr is tune's to give"],
      [["--", "--batch", "x"], '"batch" must be a number'],
      [["--", "--method", "prompt"], "--method must be lora or dora"],
      [["--targets", "q_proj;q_proj"], "--targets needs targets that differ"],
      [["--", "--nonsense", "1"], 'there is no setting "nonsense"'],
    ] as const
  ) {
    const out = await Deno.makeTempDir();
    const [code, , error] = await run("tune", "--out", out, ...args);
    assertEquals(code, 2, error);
    assert(error.startsWith("error: ") && error.trimEnd().split("\n").length === 1, error);
    assert(error.includes(message), error);
  }
});

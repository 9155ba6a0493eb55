/** tune/: a study that is a file: resuming, kills, cut-off and broken lines. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  choice,
  conditional,
  GridSampler,
  logUniform,
  MedianPruner,
  RandomSampler,
  type Sampler,
  Study,
  TpeSampler,
  uniform,
} from "@graft/ml/tune";

const space = {
  rate: logUniform(1e-5, 1e-1),
  targets: choice([["q_proj"], ["q_proj", "v_proj"]]),
  dropout: conditional(uniform(0, 0.5), { on: "targets", is: [["q_proj", "v_proj"]] }),
};

/** Runs in a folder that is removed, and gives back what was warned of. */
async function inFolder(fn: (file: string) => unknown): Promise<string[]> {
  const folder = await Deno.makeTempDir();
  const warn = console.warn;
  const warnings: string[] = [];
  console.warn = (text: string) => warnings.push(text);
  try {
    await fn(`${folder}/study.jsonl`);
  } finally {
    console.warn = warn;
    await Deno.remove(folder, { recursive: true });
  }
  return warnings;
}

const open = (file: string, sampler: Sampler = new TpeSampler()) =>
  new Study({ space, sampler, file, pruner: new MedianPruner(), seed: 9 });

/** Asks for and tells trials up to a number, the same way each time. */
function goOn(study: Study<typeof space>, trials: number): void {
  while (study.trials.filter((t) => t.state !== "running").length < trials) {
    const trial = study.ask();
    if (!trial) return;
    const loss = Math.log10(trial.params.rate / 1e-3) ** 2 + (trial.params.dropout ?? 1);
    let pruned = false;
    for (let step = 0; step < 3 && !pruned; step++) {
      trial.report(step, loss + 1 / (step + 1));
      pruned = trial.shouldPrune();
    }
    if (trial.number % 8 === 3) study.tell(trial, { state: "failed", reason: "out of memory" });
    else if (trial.number % 8 === 4) study.tell(trial, NaN);
    else study.tell(trial, pruned ? { state: "pruned" } : loss);
  }
}

Deno.test("tune: a resumed study gives the points of an unbroken one", async () => {
  const samplers = [
    () => new TpeSampler(),
    () => new RandomSampler(),
    () => new GridSampler({ points: { rate: 7, dropout: 4 }, shuffle: 1 }),
  ];
  for (const sampler of samplers) {
    const warnings = await inFolder((file) => {
      const whole = new Study({ space, sampler: sampler(), pruner: new MedianPruner(), seed: 9 });
      goOn(whole, 40);
      for (const stop of [0, 1, 7, 12, 25, 40]) {
        const study = open(file, sampler());
        goOn(study, stop);
        // Under way when the process ends: asked for again, with nothing of what it reported.
        study.ask()?.report(0, 1e9);
        study.close();
      }
      const study = open(file, sampler());
      const last = study.trials.filter((t) => t.state !== "running");
      assertEquals(last, whole.trials.slice(0, last.length));
      if (sampler().name === "grid") assertEquals(study.trials.length, 7 * 5);
      study.close();
    });
    assertEquals(warnings, []);
  }
});

Deno.test("tune: trials of a dead process are asked for again, first", async () => {
  await inFolder((file) => {
    const study = open(file);
    goOn(study, 12);
    const [a, b] = [study.ask()!, study.ask()!];
    a.report(0, 4);
    study.tell(b, 1);
    const c = study.ask()!;
    study.close();

    const next = open(file);
    const again = next.ask()!;
    assertEquals([again.number, again.params], [a.number, a.params]);
    assertEquals(next.trials[a.number].reports, []);
    again.report(0, 3);
    assertEquals(next.ask()!.number, c.number);
    assertEquals(next.ask()!.number, c.number + 1);
    next.close();
  });
});

Deno.test("tune: a study that is closed takes nothing, and says so", async () => {
  await inFolder((file) => {
    const study = open(file);
    const trial = study.ask()!;
    study.close();
    study.close();
    assertThrows(() => study.tell(trial, 1), Error, `study ${file}: is closed`);
    assertThrows(() => study.ask(), Error, `study ${file}: is closed`);
    assertEquals(study.trials.map((t) => t.state), ["running"]);
  });
});

Deno.test("tune: a process that is killed loses no trial that ended", async () => {
  await inFolder(async (file) => {
    const mod = new URL("../../tune/mod.ts", import.meta.url).href;
    const code = `import { Study, uniform } from ${JSON.stringify(mod)};
      const study = new Study({ space: { x: uniform(0, 1) }, file: ${
      JSON.stringify(file)
    }, seed: 3 });
      for (let i = 0; i < 7; i++) study.tell(study.ask(), i);
      study.ask().report(0, 1);
      console.log("ready");
      setInterval(() => {}, 1000);`;
    const child = new Deno.Command(Deno.execPath(), {
      args: ["eval", "--no-config", code],
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    const reader = child.stdout.getReader();
    assertEquals(new TextDecoder().decode((await reader.read()).value).trim(), "ready");
    // While it lives, nobody else has the file.
    const take = () => new Study({ space: { x: uniform(0, 1) }, file });
    assertThrows(take, Error, `study ${file}: another process`);
    child.kill("SIGKILL");
    await child.status;
    await reader.cancel();
    const study = take();
    assertEquals(study.seed, 3);
    assertEquals(study.trials.map((t) => t.value), [0, 1, 2, 3, 4, 5, 6, undefined]);
    assertEquals(study.ask()!.number, 7);
    study.close();
  });
});

Deno.test("tune: a study cut off at any byte is repaired", async () => {
  await inFolder((file) => {
    const study = open(file);
    goOn(study, 3);
    study.close();
    const bytes = Deno.readFileSync(file);
    const whole = study.trials;
    const warn = console.warn;
    for (let length = 0; length <= bytes.length; length++) {
      Deno.writeFileSync(file, bytes.subarray(0, length));
      const warnings: string[] = [];
      console.warn = (text: string) => warnings.push(text);
      const next = open(file);
      console.warn = warn;
      const [before, end] = [bytes[length - 1], bytes[length]];
      assertEquals(warnings.length, length === 0 || before === 10 || end === 10 ? 0 : 1);
      for (const w of warnings) assert(/study .*, line \d+: was cut off in the middle/.test(w), w);
      const told = next.trials.filter((t) => t.state !== "running");
      assertEquals(told, whole.slice(0, told.length));
      next.close();
      open(file).close(); // and is whole now
    }
  });
});

Deno.test("tune: what is wrong with a file is said, with the line", async () => {
  await inFolder((file) => {
    const study = open(file);
    goOn(study, 3);
    study.close();
    const lines = Deno.readTextFileSync(file).trimEnd().split("\n");
    const ask = lines.findIndex((line) => line.includes('"ask"'));
    const tell = lines.findIndex((line) => line.includes('"tell"'));
    const fails = (message: string, edit: (lines: string[]) => string[], end = "\n") => {
      const text = edit([...lines]).join("\n") + end;
      Deno.writeTextFileSync(file, text);
      assertThrows(() => open(file), Error, `study ${file}${message}`);
      assertEquals(Deno.readTextFileSync(file), text); // and left as it was
    };
    const at = (index: number, edit: (line: string) => string) => (all: string[]) =>
      all.with(index, edit(all[index]));
    fails(`, line ${tell + 1}: is not an event`, at(tell, (line) => line.slice(0, 20)));
    fails(`, line 2: is not an event`, at(1, () => ""));
    fails(`, line ${tell + 1}: is not an event`, at(tell, (l) => l.replace("tell", "told")));
    const rename = at(ask, (line) => line.replace('"rate"', '"speed"'));
    fails(`, line ${ask + 1}: parameter speed is not in the space`, rename);
    const far = at(ask, (line) => line.replace(/"rate":[^,}]+/, '"rate":7'));
    fails(`, line ${ask + 1}: parameter rate cannot be 7`, far);
    const twice = (all: string[]) => all.toSpliced(tell, 0, all[tell]);
    fails(`, line ${tell + 2}: trial 0 has ended already`, twice);
    fails(`, line 2: trial 0 has not begun`, (all) => all.toSpliced(ask, 1));
    fails(`, line 1: a study's file begins`, (all) => all.slice(1));
    fails(`, line 2: a second study begins`, (all) => [all[0], ...all]);
    fails(`: is not the file of a study: "some notes"`, () => ["some notes"], "");
    fails(`, line 1: is not an event`, () => ["some notes"]);

    Deno.writeTextFileSync(file, lines.join("\n") + "\n");
    const other = (options: object) => () => new Study({ space, file, ...options });
    assertThrows(other({ seed: 8 }), Error, "line 1: has seed 9, asked for is 8");
    assertThrows(other({ direction: "maximize" }), Error, 'has direction "minimize", asked for');
    const wider = { ...space, rate: logUniform(1e-6, 1e-1) };
    assertThrows(other({ space: wider }), Error, "line 1: has parameter rate {");
    const more = { ...space, extra: uniform(0, 1) };
    assertThrows(other({ space: more }), Error, "has parameter extra null, asked for is {");
    assertThrows(() => open(`${file}/..`), Error, `study ${file}/..: `);
    if (Deno.build.os === "linux") {
      assertThrows(() => open("/dev/full"), Error, "study /dev/full: is not a file");
    }
    assertThrows(() => open(`${file}/no/folder`), Error, `study ${file}/no/folder: `);
    other({})().close();
  });
});

/**
 * Trains each method on the same data, seed and budget, at several learning rates, and compares them at
 * their best: `deno task compare --help`.
 *
 * Each run is one of `deno task train` in a folder of its own. A comparison that was stopped goes on
 * when the same command is given again.
 */

import { checkpointProgress } from "@graft/ml/optim";
import { writeWhole } from "./charts.ts";
import {
  type CompareRun,
  type Comparison,
  inWords,
  table,
  writeComparison,
} from "./compare_report.ts";
import { Progress, readMetrics } from "./log.ts";
import {
  checkpointOf,
  FLAGS,
  type Given,
  LEARNING_RATES,
  type Method,
  METHODS,
  readFlags,
  type Settings,
  settingsOf,
  UsageError,
} from "./settings.ts";
import { train } from "./train.ts";

const HELP = `Compares the methods of training on the same data, seed and budget.

  deno task compare [flags]

  --methods NAMES     with commas between                     (lora,dora,prompt,ptuning-v2,full)
  --lrs NUMBERS       learning rates to try, as multiples of each method's own, with commas
                      between                                 (0.3,1,3)
  --steps N           training steps of each run              (60)
  --seq N             tokens in a sequence                    (128)
  --target NAMES      layers that low-rank adapters go to     (all-linear,lm_head)
  --out DIR           where the runs and the report go        (out/compare)
  --config FILE       a JSON object of these, without the dashes; flags stand over it
  --help              this text

and those of deno task train (see its --help): --model --rank --alpha --quantize --virtual-tokens
--data --device --batch --mix --seed.`;

/** The flags of a training run that a comparison gives itself. */
const OWN = ["method", "lr", "eval-every", "sample", "out", "steps", "seq", "target"];

/** What a comparison is told. */
interface Plan {
  readonly out: string;
  readonly runs: readonly Settings[];
}

/** All runs, and the report; gives the process's exit code. */
async function compare({ out, runs }: Plan): Promise<number> {
  const log = new Progress();
  const done: CompareRun[] = [];
  for (const [index, settings] of runs.entries()) {
    const { method, lr } = settings;
    const name = `[${index + 1}/${runs.length}] ${method}, learning rate ${lr}`;
    const known = await finished(settings);
    if (known) {
      log.line(`${name}: done before, held-out loss ${shownLoss(known)}`);
      done.push(known);
      continue;
    }
    log.line(`\n${name}`);
    const run = await runOnce(settings, log);
    if (typeof run === "number") {
      log.line(`stopped; to go on, give the same command again`);
      return run;
    }
    log.line(`${name}: held-out loss ${shownLoss(run)}`);
    done.push(run);
  }
  const comparison: Comparison = {
    date: new Date().toISOString().slice(0, 10),
    command: ["deno task compare", ...Deno.args].join(" "),
    runs: done,
  };
  await writeComparison(out, comparison);
  log.line(`\n${table(comparison)}\n\n${inWords(comparison).join("\n")}\n`);
  log.line(`wrote ${out}/compare.json and ${out}/compare.html in ${log.elapsed()}`);
  return 0;
}

/** One run, from its start or from where it was stopped; an exit code where it is stopped now. */
async function runOnce(settings: Settings, log: Progress): Promise<CompareRun | number> {
  const { method, lr, out } = settings;
  const file = `${out}/run.json`;
  await Deno.mkdir(out, { recursive: true });
  await writeWhole(file, JSON.stringify({ settings }));
  const at = await checkpointProgress(checkpointOf(out)).catch(() => null) as
    | { step: number }
    | null;
  const resume = at !== null && at.step < settings.steps;
  let run: CompareRun;
  try {
    const { stopped, code, base, last, trainable, total, peakBytes, seconds } = await train(
      { ...settings, resume },
      { log: new Progress() }, // what is left of a run is told from the run's own start
    );
    if (stopped) return code;
    const points = (await readMetrics(`${out}/metrics.jsonl`)).flatMap((record) =>
      "eval_loss" in record ? [[record.step, record.eval_loss] as [number, number]] : []
    );
    run = { method, lr, base, last, trainable, total, peakBytes, seconds, points };
  } catch (error) {
    // A learning rate that is too high is a result.
    if (!(error instanceof Error) || !error.message.includes("so the run stops")) throw error;
    log.line(error.message);
    run = { method, lr, failed: error.message };
  }
  await writeWhole(file, JSON.stringify({ settings, run }));
  // The table needs neither.
  await Deno.remove(`${out}/checkpoint`, { recursive: true }).catch(() => {});
  await Deno.remove(`${out}/model.safetensors`).catch(() => {});
  return run;
}

/** What a run has brought before, or null. Throws a `UsageError` where it was one of other settings. */
async function finished(settings: Settings): Promise<CompareRun | null> {
  const { out } = settings;
  const text = await Deno.readTextFile(`${out}/run.json`).catch(() => null);
  if (text === null) return null;
  const before = JSON.parse(text) as { settings: Record<string, unknown>; run?: CompareRun };
  for (const [key, value] of Object.entries(settings)) {
    if (key === "device" || key === "out") continue;
    if (before.settings[key] !== value) {
      throw new UsageError(
        `${out} holds a run with ${key} ${JSON.stringify(before.settings[key])}, this one has ` +
          `${JSON.stringify(value)}: choose another --out`,
      );
    }
  }
  return before.run ?? null;
}

function shownLoss(run: CompareRun): string {
  return "failed" in run ? "not a number" : run.last.eval_loss.toFixed(3);
}

/** The runs that flags ask for. */
function planOf(given: Given): Plan {
  const list = (name: string, otherwise: readonly string[]): readonly string[] => {
    const value = given.get(name)?.value;
    return value === undefined ? otherwise : Array.isArray(value) ? value : `${value}`.split(",");
  };
  const methods = list("methods", METHODS).map((method) => {
    if (!METHODS.includes(method as Method)) {
      throw new UsageError(
        `${given.get("methods")!.label} must be some of ${METHODS.join(",")}, got "${method}"`,
      );
    }
    return method as Method;
  });
  const factors = list("lrs", ["0.3", "1", "3"]).map((text) => {
    const factor = Number(text);
    if (!(factor > 0 && factor < Infinity)) {
      throw new UsageError(
        `${given.get("lrs")!.label} must be numbers above 0 with commas between, got "${text}"`,
      );
    }
    return factor;
  });
  const out = `${given.get("out")?.value ?? "out/compare"}`;
  const steps = settingsOf(new Map([...given].filter(([name]) => name === "steps"))).steps;
  const shared = new Map([...given].filter(([name]) => FLAGS.includes(name)));
  const set = (name: string, value: unknown): void => {
    shared.set(name, { value, label: `"${name}"` });
  };
  if (!shared.has("seq")) set("seq", 128);
  // Training all trains the output layer too.
  if (!shared.has("target")) set("target", "all-linear,lm_head");
  set("sample", 0);
  set("eval-every", Math.ceil(steps / 2));
  const runs = methods.flatMap((method) =>
    factors.map((factor) => {
      const lr = Number((factor * LEARNING_RATES[method]).toPrecision(2));
      set("method", method);
      set("lr", lr);
      set("out", `${out}/${method}-${lr}`);
      return settingsOf(shared);
    })
  );
  return { out, runs };
}

if (import.meta.main) {
  try {
    const flags = ["methods", "lrs", "steps", "seq", "target", "out"];
    const others = FLAGS.filter((name) => !OWN.includes(name));
    const { given, on } = await readFlags(Deno.args, [...flags, ...others], ["help"]);
    if (on.has("help")) console.log(HELP);
    Deno.exit(on.has("help") ? 0 : await compare(planOf(given)));
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}

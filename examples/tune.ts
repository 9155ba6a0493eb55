/**
 * Searches the settings of a LoRA for those that train best: `deno task tune --help`.
 *
 * Each trial is a training run (`examples/train.ts`) in a process of its own, so several run at a time
 * and one that fails takes no other along. Left out: trials on several machines.
 */

import { parseArgs } from "@std/cli/parse-args";
import {
  choice,
  GridSampler,
  HalvingPruner,
  integer,
  logUniform,
  MedianPruner,
  type Outcome,
  type Params,
  type Pruner,
  RandomSampler,
  type Sampler,
  Study,
  TpeSampler,
  type Trial,
} from "@graft/ml/tune";
import { writeWhole } from "./charts.ts";
import { Progress, readMetrics } from "./log.ts";
import { settingsFrom, UsageError } from "./settings.ts";
import { StopSignals } from "./stop.ts";
import { writeStudyReport } from "./tune_report.ts";

/** The names are those of Llama and its kin. */
const TARGETS = "q_proj,v_proj;q_proj,k_proj,v_proj,o_proj;all-linear";

const HELP = `Searches rank, alpha, targets and learning rate of a LoRA for the least held-out loss.

  deno task tune [flags] [-- flags of deno task train, for all trials]

  --trials N      trials in all, those of earlier runs among them;
                  a grid has 16 for each target and ends by itself   (20)
  --steps N       training steps of a trial                          (30)
  --targets LIST  what --target of train is chosen from, ";" between
                  (${TARGETS})
  --sampler NAME  tpe, random or grid                                (tpe)
  --pruner NAME   which trials stop early: median, halving or none   (median)
  --parallel N    trials at a time; they share the cores             (1)
  --seed N        decides the sampler's choices                      (0)
  --final N       steps to train with the best settings at the end   (0)
  --out DIR       for the study, its trials, report.html, best.json  (out/tune)
  --help          this text

A search that was stopped goes on when the same command is given again. Its best settings are a file
for "deno task train --config out/tune/best.json".`;

/** Where to look: flags of `deno task train`, but for alpha, which is given by the rank. */
function spaceOf(targets: readonly string[]) {
  return {
    lr: logUniform(3e-4, 3e-2),
    rank: integer(2, 32, { log: true }),
    alpha_over_rank: choice([1, 2, 4]),
    target: choice(targets),
  };
}

type SearchSpace = ReturnType<typeof spaceOf>;

/** The values of a grid: how many on the way from bound to bound, or which. */
const GRID = { lr: 4, rank: [4, 16], alpha_over_rank: [1, 2] };

interface Settings {
  readonly trials: number;
  readonly steps: number;
  readonly targets: readonly string[];
  readonly sampler: string;
  readonly pruner: string;
  readonly parallel: number;
  readonly seed: number;
  readonly final: number;
  readonly out: string;
  /** Flags of every trial's training run. */
  readonly train: Config;
}

/** Flags of a training run, as its --config takes them. */
type Config = Readonly<Record<string, string | number>>;

/** A whole search; gives the process's exit code. */
async function tune(settings: Settings): Promise<number> {
  const { out, steps, trials, parallel, sampler } = settings;
  const log = new Progress();
  await Deno.mkdir(`${out}/trials`, { recursive: true });
  await checkSearch(settings);
  const space = spaceOf(settings.targets);
  const study = new Study({
    space,
    sampler: samplerOf(sampler),
    pruner: prunerOf(settings.pruner, steps),
    seed: settings.seed,
    file: `${out}/study.jsonl`,
  });
  const before = study.trials.filter((trial) => trial.state !== "running").length;
  log.line(
    `${sampler} over ${Object.keys(space).join(", ")}: ` +
      (before > 0 ? `${before} trials are there already` : `trials of ${steps} steps`),
  );

  // What is under way at a signal is not told to the study: the next run asks for it again.
  const running = new Set<Deno.ChildProcess>();
  using signals = new StopSignals(async () => {
    for (const child of running) end(child);
    await Promise.all([...running].map((child) => child.status));
    study.close();
    log.line("stopped; the same command goes on");
    Deno.exit(signals.code);
  });

  const threads = Math.max(1, Math.floor(navigator.hardwareConcurrency / parallel));
  const run = async (trial: Trial<SearchSpace>): Promise<Outcome> => {
    const folder = `${out}/trials/${trial.number}`;
    await Deno.remove(folder, { recursive: true }).catch(() => {}); // of a search that was stopped
    const config = {
      ...settings.train,
      ...flagsOf(trial.params),
      steps,
      "eval-every": Math.ceil(steps / 4),
      sample: 0,
      out: folder,
    };
    const child = await train(config, `${folder}.json`, "piped", ["--threads", `${threads}`]);
    running.add(child);
    let ended = false;
    const output = child.output().finally(() => ended = true);
    let seen = 0, pruned = false;
    while (!ended) {
      await Promise.race([output, new Promise((resolve) => setTimeout(resolve, 500))]);
      const losses = await evaluations(folder);
      for (const { step, loss } of losses.slice(seen)) trial.report(step, loss);
      seen = losses.length;
      pruned = !ended && trial.shouldPrune();
      if (pruned) {
        end(child);
        await output;
      }
    }
    running.delete(child);
    if (signals.code > 0) return await new Promise<never>(() => {}); // the process ends in stop()
    const said = Object.entries(trial.params).map(([name, value]) => `${name} ${shown(value)}`);
    const title = `trial ${trial.number} (${said.join(", ")})`;
    if (pruned) {
      log.line(`${title}: stopped early`);
      return { state: "pruned" };
    }
    const { code, stderr } = await output;
    if (code === 0) {
      const { loss } = (await evaluations(folder)).at(-1)!;
      log.line(`${title}: held-out loss ${loss.toFixed(3)}`);
      return loss;
    }
    const lines = new TextDecoder().decode(stderr).trim().split("\n");
    const message = lines.at(-1)!.replace(/^error: /, "");
    log.line(`${title}: failed: ${message}`);
    if (/the loss is .* so the run stops/.test(message)) return NaN; // settings to stay away from
    throw new Error(message);
  };
  const limit = sampler === "grid" ? {} : { trials };
  await study.run(run, { ...limit, parallel, failures: 2 });
  signals[Symbol.dispose]();

  const best = study.best();
  const config = { ...settings.train, ...flagsOf(best.params) };
  await writeWhole(`${out}/best.json`, `${JSON.stringify(config, null, 2)}\n`);
  log.line(`best: trial ${best.number}, held-out loss ${best.value!.toFixed(3)}`);
  log.line(`wrote ${await writeStudyReport(study, out)} and ${out}/best.json`);
  study.close();
  if (settings.final === 0) {
    log.line(`done in ${log.elapsed()}; try: deno task train --config ${out}/best.json`);
    return 0;
  }
  const last = { ...config, steps: settings.final, out: `${out}/final` };
  const child = await train(last, `${out}/final.json`, "inherit");
  using _ = new StopSignals((signal) => end(child, signal)); // it leaves a checkpoint
  return (await child.status).code;
}

/** Trials of one study have the same job: a search goes on only with the settings that it began with. */
async function checkSearch({ out, steps, train }: Settings): Promise<void> {
  const { device: _, ...job } = settingsFrom({ ...train, steps });
  const path = `${out}/search.json`;
  const before = await Deno.readTextFile(path).then(JSON.parse).catch((error) => {
    if (error instanceof Deno.errors.NotFound) return job;
    throw new Error(`${path}: ${error.message}`);
  });
  for (const [key, value] of Object.entries(job)) {
    if (before[key] === value) continue;
    throw new UsageError(
      `the search in ${out} has ${key} ${before[key]}, asked for is ${value}: choose another --out`,
    );
  }
  await writeWhole(path, `${JSON.stringify(job, null, 2)}\n`);
}

/** A point of the space as flags of a training run. */
function flagsOf({ lr, rank, alpha_over_rank, target }: Params<SearchSpace>): Config {
  return { lr: Number(lr.toPrecision(4)), rank, alpha: alpha_over_rank * rank, target };
}

/** Starts a training run whose flags go by the file `path`. */
async function train(
  config: Config,
  path: string,
  output: "piped" | "inherit",
  flags: readonly string[] = [],
): Promise<Deno.ChildProcess> {
  await Deno.writeTextFile(path, JSON.stringify(config));
  return new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "-A",
      "--quiet",
      "--v8-flags=--no-allocation-site-pretenuring", // as `deno task train`
      import.meta.resolve("./train.ts"),
      "--config",
      path,
      ...flags,
    ],
    stdin: "null",
    stdout: output === "piped" ? "null" : output,
    stderr: output,
  }).spawn();
}

/** At once, unless a milder signal is given: what a trial leaves is not gone on with. */
function end(child: Deno.ChildProcess, signal: Deno.Signal = "SIGKILL"): void {
  try {
    child.kill(signal);
  } catch {
    // It has ended by itself.
  }
}

/** The held-out losses that a run has written so far, but for the one before its first step. */
async function evaluations(folder: string): Promise<{ step: number; loss: number }[]> {
  const records = await readMetrics(`${folder}/metrics.jsonl`).catch(() => []);
  return records.flatMap(({ step, eval_loss }) =>
    typeof step === "number" && step > 0 && typeof eval_loss === "number"
      ? [{ step, loss: eval_loss }]
      : []
  );
}

function samplerOf(name: string): Sampler {
  if (name === "grid") return new GridSampler({ points: GRID });
  return name === "random" ? new RandomSampler() : new TpeSampler();
}

function prunerOf(name: string, steps: number): Pruner | undefined {
  if (name === "none") return undefined;
  return name === "median"
    ? new MedianPruner()
    : new HalvingPruner({ first: Math.ceil(steps / 4), factor: 2 });
}

function shown(value: string | number): string {
  return typeof value === "number" ? String(Number(value.toPrecision(3))) : value;
}

/** What the flags say, or null where they ask for help. */
function parseFlags(args: string[]): Settings | null {
  const bad = (message: string): never => {
    throw new UsageError(`${message}; --help lists the flags`);
  };
  const names = [
    "trials",
    "steps",
    "targets",
    "sampler",
    "pruner",
    "parallel",
    "seed",
    "final",
    "out",
  ];
  const flags = parseArgs(args, {
    string: names,
    boolean: ["help"],
    "--": true,
    unknown: (arg: string) => bad(`there is no flag ${arg} (those of train come after --)`),
  });
  if (flags.help) return null;
  for (const name of names) {
    if (flags[name] === "" || Array.isArray(flags[name])) bad(`--${name} needs one value`);
  }
  const whole = (name: string, otherwise: number, least: number): number => {
    const value = Number(flags[name] ?? otherwise);
    if (Number.isSafeInteger(value) && value >= least) return value;
    return bad(`--${name} must be a whole number from ${least} on, got "${flags[name]}"`);
  };
  const word = (name: string, words: readonly string[]): string => {
    const value = flags[name] ?? words[0];
    return words.includes(value)
      ? value
      : bad(`--${name} must be ${words.join(" or ")}, got "${value}"`);
  };
  const { _: others, ...train } = parseArgs(flags["--"] ?? []);
  if (others.length > 0) bad(`after --, ${others[0]} is not a flag`);
  for (const name of ["lr", "rank", "alpha", "target", "steps", "eval-every", "sample", "out"]) {
    if (name in train) bad(`--${name} is tune's to give, so it cannot stand after --`);
  }
  const { method } = settingsFrom(train);
  if (method !== "lora" && method !== "dora") {
    bad(`after --, --method must be lora or dora, whose settings are searched, got ${method}`);
  }
  const targets = (flags.targets ?? TARGETS).split(";");
  if (new Set(targets).size < targets.length || targets.includes("")) {
    bad(`--targets needs targets that differ, ";" between, got "${flags.targets}"`);
  }
  return {
    trials: whole("trials", 20, 1),
    steps: whole("steps", 30, 1),
    targets,
    sampler: word("sampler", ["tpe", "random", "grid"]),
    pruner: word("pruner", ["median", "halving", "none"]),
    parallel: whole("parallel", 1, 1),
    seed: whole("seed", 0, 0),
    final: whole("final", 0, 0),
    out: flags.out ?? "out/tune",
    train,
  };
}

if (import.meta.main) {
  try {
    const settings = parseFlags(Deno.args);
    if (!settings) console.log(HELP);
    Deno.exit(settings ? await tune(settings) : 0);
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}

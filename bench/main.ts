/**
 * graft beside its peers on the same work, in one run and in turns, and beside what the machine can do.
 *
 *     deno task bench [--only PATTERN] [--quick] [--device cpu|webgpu] [--threads N]
 *                     [--python INTERPRETER,…] [--out bench/results.md]
 *
 * Each side is a process of its own. What they compute is compared, and the command fails where a side
 * does not compute what graft computes. Results go into a table and, beside it, a plot.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { type Case, CASES } from "./cases.ts";
import { disagreements, type Effort, type Outcome, Sides } from "./compare.ts";
import { type Limits, measureLimits } from "./limits.ts";
import { plot } from "./plot.ts";
import { loadAverage, machine } from "./report.ts";
import { resultsOf } from "./results.ts";
import { launches } from "./sides/process.ts";
import { batch, GPTS, weights } from "./small_gpt/spec.ts";
import { loadStories15M } from "@graft/ml/data";

const FULL: Effort = { samples: 7, sample: 40, budget: 12_000 };
const QUICK: Effort = { samples: 3, sample: 20, budget: 6_000 };
/** Seconds after which the rest is measured quickly: on a busy machine the command still ends. */
const PATIENCE = 480;
/** Batches that are written for Python, which does not make them itself; more would repeat. */
const BATCHES = 64;

/** Debian's interpreter, where it has PyTorch, and those named by the flag or by GRAFT_BENCH_PYTHON. */
async function interpreters(named: string): Promise<string[]> {
  const wanted = ["/usr/bin/python3", ...named.split(",").filter((p) => p !== "")];
  const found: string[] = [];
  for (const command of new Set(wanted)) {
    try {
      const { success } = await new Deno.Command(command, {
        args: ["-c", "import torch, numpy"],
        stdout: "null",
        stderr: "null",
      }).output();
      if (success) found.push(command);
      else if (command !== wanted[0]) throw new Error("it cannot import torch and numpy");
    } catch (error) {
      if (command !== wanted[0]) {
        throw new Error(`--python ${command}: ${(error as Error).message}`);
      }
    }
  }
  return found;
}

/** Writes what a case needs as files, and gives the folder: a GPT's weights and batches, or stories15M. */
async function dataOf(work: Case, folder: string): Promise<string | null> {
  if (work.group === "Generation and loading" || work.kind === "stories") {
    return await loadStories15M();
  }
  if (work.kind !== "step") return null;
  const sizes = GPTS[work.gpt!];
  const path = `${folder}/${work.gpt}-${work.method}`;
  await Deno.mkdir(path);
  const all = [...weights(sizes, work.method!)];
  const index = { sizes, weights: all.map(([name, { shape }]) => [name, shape]) };
  await Deno.writeTextFile(`${path}/index.json`, JSON.stringify(index));
  await write(`${path}/weights.bin`, all.map(([, { data }]) => data));
  const batches = Array.from({ length: BATCHES }, (_, i) => batch(sizes, i));
  await write(`${path}/batches.bin`, batches.flatMap((b) => [b.inputs, b.targets]));
  return path;
}

async function write(path: string, parts: readonly ArrayBufferView[]): Promise<void> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const { buffer, byteOffset, byteLength } of parts) {
    all.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  await Deno.writeFile(path, all);
}

/** One line on a terminal that is written over; nothing elsewhere. */
function progress(text: string): void {
  if (!Deno.stderr.isTerminal()) return;
  Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${text}`));
}

/** A line of what a case showed. */
function line({ case: work, sides }: Outcome): string {
  const figures = [...sides].map(([label, m]) =>
    `${label} ${m === null ? "–" : typeof m === "string" ? "fails" : `${m.ms.toPrecision(3)} ms`}`
  );
  return `${work.name}: ${figures.join(", ")}`;
}

/** The better of two measurements, since what else runs on the machine only takes away. */
function better(a: Limits, b: Limits): Limits {
  return {
    flops: Math.max(a.flops, b.flops),
    read: Math.max(a.read, b.read),
    copied: Math.max(a.copied, b.copied),
  };
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["only", "device", "threads", "python", "out"],
    boolean: ["quick", "help"],
    default: { device: "cpu", threads: `${navigator.hardwareConcurrency}` },
    unknown: (flag) => {
      console.error(`bench: no flag ${flag}; --help lists them`);
      Deno.exit(2);
    },
  });
  if (flags.help) {
    console.log(
      "deno task bench [--only PATTERN] [--quick] [--device cpu|webgpu] [--threads N]\n" +
        "                [--python INTERPRETER,…] [--out bench/results.md]",
    );
    Deno.exit(0);
  }
  const device = flags.device === "webgpu" ? "webgpu" : "cpu";
  const threads = Number(flags.threads);
  const only = new RegExp(flags.only ?? "", "i");
  const cases = CASES.filter((c) =>
    only.test(`${c.group}: ${c.name}`) &&
    (c.quick || flags.only !== undefined || !(flags.quick || device === "webgpu")) &&
    !(device === "webgpu" && c.only === "cpu")
  );
  if (cases.length === 0) throw new Error(`--only ${flags.only}: no case has such a name`);
  const named = flags.python ?? Deno.env.get("GRAFT_BENCH_PYTHON") ?? "";
  const pythons = device === "cpu" ? await interpreters(named) : [];
  const out = flags.out ?? new URL(
    device === "cpu" ? "./results.md" : "./results-webgpu.md",
    import.meta.url,
  ).pathname;

  const about = await machine();
  console.log(about);
  const start = performance.now();
  const folder = await Deno.makeTempDir();
  const sides = new Sides(launches(device, threads, pythons));
  const outcomes: Outcome[] = [];
  const loads: number[] = [];
  let limits = await measureLimits(device, threads);
  try {
    for (const [i, work] of cases.entries()) {
      const late = performance.now() - start > 1000 * PATIENCE;
      const effort = flags.quick || late ? QUICK : FULL;
      const place = `${i + 1}/${cases.length} ${work.name}`;
      const data = await dataOf(work, folder);
      const outcome = await sides.run(work, data, effort, (what) => progress(`${place}: ${what}`));
      outcomes.push(outcome);
      loads.push(loadAverage());
      progress("");
      console.log(
        `${((performance.now() - start) / 1000).toFixed(0).padStart(4)} s  ${line(outcome)}`,
      );
    }
  } finally {
    await sides.close();
    await Deno.remove(folder, { recursive: true });
  }
  limits = better(limits, await measureLimits(device, threads));

  const seconds = (performance.now() - start) / 1000;
  const image = out.replace(/\.md$/, "") + ".svg";
  const text = resultsOf({
    device,
    about,
    outcomes,
    limits,
    loads,
    names: sides.names,
    threads,
    seconds,
    image,
  });
  await Deno.writeTextFile(`${image}.tmp`, plot(outcomes, sides.names));
  await Deno.rename(`${image}.tmp`, image);
  await Deno.writeTextFile(`${out}.tmp`, text);
  await Deno.rename(`${out}.tmp`, out);
  console.log(`\n${text}`);
  const wrong = outcomes.flatMap(disagreements);
  for (const problem of wrong) console.error(problem);
  Deno.exit(wrong.length > 0 ? 1 : 0);
}

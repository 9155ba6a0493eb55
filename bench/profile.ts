/**
 * Where a training step spends its time in graft: kernels by label, and what the host does around
 * them.
 *
 *     deno run -A bench/profile.ts [--model small|large|stories15m] [--method full|lora] [--steps 20] [--threads N]
 *
 * Every kernel runs as a program of its own here, so that each can be timed; the sum is somewhat more
 * than an ordinary step takes, which is printed beside it. A time is the least of the runs: what else
 * happens on the machine only adds. With `--threads 1` it is processor time, good on a busy machine too.
 *
 * @module
 */

import process from "node:process";
import { init } from "@graft/ml";
import { parseArgs } from "@std/cli/parse-args";
import type { Program, Run, Step } from "../core/kernel.ts";
import { STORIES_15M, trainer } from "./llama.ts";
import { machine, median, table } from "./report.ts";
import { graftGpt } from "./small_gpt/graft.ts";
import { type GptName, GPTS, type Method } from "./small_gpt/spec.ts";

/** Times of one kernel of the plan over all runs. */
interface Timed {
  readonly label: string;
  readonly where: string;
  readonly ms: number[];
}

const shown = (step: Step): string => {
  const { kernel } = step;
  if (kernel.kind === "loop") {
    const kept = kernel.shape.length - kernel.reduced;
    const over = kernel.reduced > 0 ? ` over [${kernel.shape.slice(kept)}]` : "";
    return `[${kernel.shape.slice(0, kept)}]${over}`;
  }
  return kernel.inputs.map((o) => `[${o.shape}]${o.strides.at(-1) === 1 ? "" : "ᵀ"}`).join(" ");
};

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["model", "method", "steps", "threads"],
    default: { model: "small", method: "lora", steps: "20" },
  });
  const count = Number(flags.steps);
  // With one thread the time that the process had is the measure: it counts nobody else's work.
  const clock = flags.threads === "1"
    ? (): number => {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1000;
    }
    : (): number => performance.now();
  const threads = flags.threads ? Number(flags.threads) : undefined;
  const method = flags.method as Method;
  const device = await init({ device: "cpu", threads });
  const side = flags.model === "small" || flags.model === "large"
    ? await graftGpt(GPTS[flags.model as GptName], method)
    : await trainer(STORIES_15M, method, [4, 256]);
  const backend = device.backend!;

  // Runs alternate between the whole plan and its kernels one by one, so that both meet the same machine.
  const whole: number[] = [];
  const outside: number[] = [];
  let timed: Timed[] = [];
  let ran = 0;
  let apart = false;
  const make = backend.program.bind(backend);
  backend.program = (steps, words): Program => {
    const all = make(steps, words);
    const single = steps.map((step) => make([step], words));
    const own = steps.map((s): Timed => ({ label: s.kernel.label, where: shown(s), ms: [] }));
    return {
      dispose: () => [all, ...single].forEach((program) => program.dispose()),
      run: async (run: Run) => {
        timed = own;
        const start = clock();
        let last = apart ? null : await all.run(run);
        for (const [i, program] of apart ? single.entries() : []) {
          const uploads = i === 0 ? run.uploads : [];
          const results = i === single.length - 1 ? run.results : [];
          const start = clock();
          last = await program.run({ scalars: run.scalars, uploads, results });
          own[i].ms.push(clock() - start);
        }
        ran = clock() - start;
        return last!;
      },
    };
  };
  for (let i = 0; i < 2 * (count + 5); i++) {
    apart = i % 2 === 1;
    const start = clock();
    await side.step(i);
    if (apart || i < 10) continue;
    whole.push(ran);
    outside.push(clock() - start - ran);
  }

  const total = timed.reduce((sum, t) => sum + Math.min(...t.ms), 0);
  console.log(await machine());
  console.log(`what:    ${flags.model}, ${method}; ${device.description}`);
  const ms = (n: number): string => n.toFixed(2);
  console.log(
    `\na plan runs ${ms(Math.min(...whole))} ms (median ${ms(median(whole))}), its ` +
      `${timed.length} kernels one by one ${
        ms(total)
      } ms; recording, looking up and fetching take ` +
      `${ms(Math.min(...outside))} ms (median ${ms(median(outside))})\n`,
  );
  for (const by of ["label", "where"] as const) {
    const groups = new Map<string, { ms: number; count: number }>();
    for (const t of timed) {
      const name = by === "label" ? t.label : `${t.label} ${t.where}`;
      const group = groups.get(name) ?? { ms: 0, count: 0 };
      group.ms += Math.min(...t.ms);
      group.count++;
      groups.set(name, group);
    }
    const rows = [...groups].sort((a, b) => b[1].ms - a[1].ms).slice(0, by === "label" ? 25 : 40);
    console.log(table(
      [by === "label" ? "kernel" : "kernel and shapes", "times", "ms", "%"],
      rows.map(([name, g]) => [name, `${g.count}`, ms(g.ms), (100 * g.ms / total).toFixed(1)]),
    ));
    console.log();
  }
  Deno.exit(0);
}

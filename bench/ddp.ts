/**
 * What data parallelism costs: step time, communication and how much of it is hidden, against the number
 * of ranks; and a model of it, held against what was measured and drawn out to many ranks.
 *
 * `deno run -A bench/ddp.ts [--launcher "mpiexec -n"] [--ranks 1,2,4] [--model small|stories15m]
 * [--steps 15] [--rows 2] [--sequence 128] [--bucket 8] [--latency S] [--bandwidth BYTES]`
 */

import { parseArgs } from "@std/cli/parse-args";
import { runLocal } from "@graft/ml/dist";
import type { Measured, RankJob } from "./ddp_rank.ts";
import { machine, table } from "./report.ts";

/** What a network does: seconds to begin, bytes a second. */
interface Network {
  readonly latency: number;
  readonly bandwidth: number;
}

/** Share of a step's time that is backward: two of three equal parts. */
const BACKWARD = 2 / 3;
/** Bytes of the exchange of counts, and of the comparison of calls before each collective. */
const COUNTS = 40, CALL = 16;

/**
 * Seconds of an all-reduce of `bytes` over `ranks` by halving and doubling (Thakur et al. 2005,
 * "Optimization of collective communication operations in MPICH", section 4.4).
 */
function allReduce({ latency, bandwidth }: Network, ranks: number, bytes: number): number {
  if (ranks === 1) return 0;
  const turns = 2 * Math.ceil(Math.log2(ranks));
  return turns * latency + 2 * (ranks - 1) / ranks * bytes / bandwidth;
}

/** A collective of dist: ranks compare their calls, then join their data. */
function collective(network: Network, ranks: number, bytes: number): number {
  return allReduce(network, ranks, CALL) + allReduce(network, ranks, bytes);
}

function communication(network: Network, ranks: number, buckets: readonly number[]): number {
  return [COUNTS, ...buckets].reduce((sum, bytes) => sum + collective(network, ranks, bytes), 0);
}

/** Seconds of a step whose buckets are reduced while backward goes on, on cores of their own. */
function overlapped(
  network: Network,
  ranks: number,
  compute: number,
  buckets: readonly number[],
): number {
  const all = buckets.reduce((a, b) => a + b, 0);
  let done = compute * (1 - BACKWARD);
  let ready = done;
  for (const bytes of buckets) {
    ready += compute * BACKWARD * bytes / all;
    done = Math.max(done, ready) + collective(network, ranks, bytes);
  }
  return Math.max(compute, done);
}

/** Latency and bandwidth by which the model is nearest to what sizes took, in relative terms. */
function fit({ ranks, sizes }: Measured): Network {
  // seconds = x · latency + y / bandwidth, each row divided by its seconds.
  const rows = sizes.map(([bytes, seconds]) => [
    4 * Math.ceil(Math.log2(ranks)) / seconds,
    2 * (ranks - 1) / ranks * (bytes + CALL) / seconds,
  ]);
  const sum = (f: (row: number[]) => number): number => rows.reduce((s, row) => s + f(row), 0);
  const [xx, xy, yy] = [sum(([x]) => x * x), sum(([x, y]) => x * y), sum(([, y]) => y * y)];
  const [x1, y1] = [sum(([x]) => x), sum(([, y]) => y)];
  const determinant = xx * yy - xy * xy;
  return {
    latency: Math.max(0, (x1 * yy - y1 * xy) / determinant),
    bandwidth: determinant / (xx * y1 - xy * x1),
  };
}

async function measure(launcher: string, ranks: number, job: RankJob): Promise<Measured> {
  const module = new URL("./ddp_rank.ts", import.meta.url);
  if (launcher === "") return (await runLocal(module, { size: ranks, args: [job] }))[0] as Measured;
  const [program, ...args] = launcher.split(" ");
  const deno = [Deno.execPath(), "run", "-A", "--quiet", module.pathname, JSON.stringify(job)];
  const { code, stdout } = await new Deno.Command(program, {
    args: [...args, `${ranks}`, ...deno],
    stderr: "inherit",
  }).output();
  if (code !== 0) throw new Error(`${launcher} ${ranks}: ended with ${code}`);
  return JSON.parse(new TextDecoder().decode(stdout).trim().split("\n").at(-1)!);
}

const ms = (seconds: number): string => (1000 * seconds).toFixed(seconds < 0.01 ? 2 : 1);
const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

function row(m: Measured, network: Network | null): string[] {
  const { ranks, compute, step, buckets } = m;
  const shown = Math.max(0, step - compute);
  const predicted = network ? communication(network, ranks, buckets) : 0;
  const alone = m.ranks === 1;
  return [
    `${ranks}`,
    ms(compute),
    ms(step),
    alone ? "" : ms(m.communication),
    alone ? "" : ms(predicted),
    alone ? "" : percent(predicted / m.communication - 1),
    alone ? "" : percent(1 - Math.min(1, shown / m.communication)),
    alone
      ? ""
      : `${ms(overlapped(network!, ranks, compute, buckets))} to ${ms(compute + predicted)}`,
    alone ? "" : percent((compute + predicted) / step - 1),
    percent(compute / step),
  ];
}

function drawnOut(network: Network, { compute, buckets }: Measured): string {
  const rows = [2, 4, 8, 16, 64, 256, 1024].map((ranks) => {
    const [least, most] = [
      overlapped(network, ranks, compute, buckets),
      compute + communication(network, ranks, buckets),
    ];
    return [
      `${ranks}`,
      ms(communication(network, ranks, buckets)),
      `${ms(least)} to ${ms(most)}`,
      `${percent(compute / most)} to ${percent(compute / least)}`,
    ];
  });
  return table(["ranks", "communication, ms", "step, ms", "of ideal speed"], rows);
}

const flags = parseArgs(Deno.args, {
  string: [
    "launcher",
    "ranks",
    "model",
    "steps",
    "rows",
    "sequence",
    "bucket",
    "latency",
    "bandwidth",
  ],
  default: { launcher: "", ranks: "1,2,4", model: "stories15m", steps: "15", rows: "2" },
});
const counts = flags.ranks.split(",").map(Number);
console.log(await machine());
console.log(`ranks:   ${flags.launcher || "threads of one process"}, one thread of the CPU each`);
for (const method of ["lora", "full"] as const) {
  const job: RankJob = {
    method,
    model: flags.model as RankJob["model"],
    steps: Number(flags.steps),
    rows: Number(flags.rows),
    sequence: Number(flags.sequence ?? (flags.model === "small" ? 64 : 128)),
    bucketBytes: Number(flags.bucket ?? 8) * 2 ** 20,
  };
  const all: Measured[] = [];
  for (const ranks of counts) all.push(await measure(flags.launcher, ranks, job));
  const networks = all.map((m) => m.ranks > 1 ? fit(m) : null);
  const total = all[0].buckets.reduce((a, b) => a + b, 0);
  console.log(
    `\n${method}: ${(total / 2 ** 20).toFixed(2)} MiB of gradients in ${all[0].buckets.length} ` +
      `buckets; ${job.rows} rows of ${job.sequence} tokens a rank\n`,
  );
  console.log(table(
    [
      "ranks",
      "alone, ms",
      "step, ms",
      "communication, ms",
      "by the model",
      "off",
      "hidden",
      "step by the model",
      "off",
      "efficiency",
    ],
    all.map((m, i) => row(m, networks[i])),
  ));
  for (const { ranks, sizes } of all.filter((m) => m.ranks > 1)) {
    const each = sizes.map(([bytes, seconds]) => `${bytes / 1024} KiB ${ms(seconds)}`);
    console.log(`\nAll-reduces of ${ranks} ranks, ms: ${each.join(", ")}`);
  }
  const at = all.findIndex((m) => m.ranks > 1);
  if (at < 0) continue;
  const network: Network = {
    latency: Number(flags.latency ?? networks[at]!.latency),
    bandwidth: Number(flags.bandwidth ?? networks[at]!.bandwidth),
  };
  console.log(
    `\nDrawn out, with ${(1e6 * network.latency).toFixed(1)} µs a turn and ` +
      `${(network.bandwidth / 1e9).toFixed(2)} GB/s, from all hidden to nothing hidden:\n`,
  );
  console.log(drawnOut(network, all[0]));
}

/**
 * How the cost of a LoRA step grows: one size of a small Llama is varied at a time, and the slope of
 * time and memory on log axes printed: 1 is linear, 2 quadratic.
 *
 *     deno run -A bench/scaling.ts [--quick] [--threads N] [--out bench/scaling.html]
 *
 * Memory is what the planner holds for a step: temporaries, and with attention alone its results too.
 * The command fails where attention's memory grows faster than linearly.
 *
 * @module
 */

import process from "node:process";
import { attention, type Device, init, type Tensor, tensor, Variable } from "@graft/ml";
import { parseArgs } from "@std/cli/parse-args";
import { chart, charts, page } from "../examples/charts.ts";
import { STORIES_15M, trainer } from "./llama.ts";
import { machine, mib, table } from "./report.ts";
import { numbers } from "./sides/work.ts";

/** What is varied, and what the others stand at. */
const BASE = { T: 128, layers: 2, d: 128, V: 2048, rank: 8, batch: 2 };
type Size = keyof typeof BASE;

const VALUES: Readonly<Record<Size, readonly number[]>> = {
  T: [64, 128, 256, 512, 1024],
  layers: [1, 2, 4, 8],
  d: [64, 128, 256, 512],
  V: [512, 2048, 8192, 32768],
  rank: [2, 8, 32, 128],
  batch: [1, 2, 4, 8],
};
const LENGTHS = [128, 256, 512, 1024, 2048];
/** A slope of memory in T from which on it is not linear. */
const LINEAR = 1.15;

/** One point of a curve. */
interface Point {
  readonly at: number;
  readonly ms: number;
  readonly bytes: number;
}

/** Processor time where one thread computes, which a busy machine disturbs little; else the clock. */
function clockOf(threads: number): () => number {
  if (threads > 1) return () => performance.now();
  return () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  };
}

/** The least time of `count` runs after two to warm up. */
async function least(
  run: (index: number) => Promise<unknown>,
  count: number,
  clock: () => number,
): Promise<number> {
  let best = Infinity;
  for (let i = 0; i < count + 2; i++) {
    const start = clock();
    await run(i);
    if (i >= 2) best = Math.min(best, clock() - start);
  }
  return best;
}

async function step(sizes: typeof BASE, threads: number, count: number): Promise<Point> {
  const device = await init({ device: "cpu", threads });
  const { step } = await trainer(
    {
      ...STORIES_15M,
      vocab_size: sizes.V,
      hidden_size: sizes.d,
      intermediate_size: 3 * sizes.d,
      num_hidden_layers: sizes.layers,
      num_attention_heads: sizes.d / 32,
      max_position_embeddings: sizes.T,
    },
    "lora",
    [sizes.batch, sizes.T],
    sizes.rank,
  );
  const ms = await least(step, count, clockOf(threads));
  const bytes = device.lastReport!.temporaryBytes;
  await device.close();
  return { at: 0, ms, bytes };
}

/** Attention and its gradients, of one head. */
async function attended(t: number, threads: number, count: number): Promise<Point> {
  const device: Device = await init({ device: "cpu", threads });
  const make = (seed: number): Variable =>
    new Variable(tensor(numbers(2 * t * 64, seed), { shape: [1, 2, t, 64] }), {
      requiresGrad: true,
    });
  const [q, k, v] = [make(1), make(2), make(3)];
  await device.flush();
  const run = async (): Promise<void> => {
    const y: Tensor = attention(q, k, v, { causal: true });
    y.square().sum().backward();
    await device.flush();
    for (const x of [q, k, v]) x.grad = null;
  };
  const ms = await least(run, count, clockOf(threads));
  const bytes = device.counters.peakBytes;
  await device.close();
  return { at: t, ms, bytes };
}

/** The slope of the last two points, where what is fixed counts least; and of all, by least squares. */
function slopes(points: readonly Point[], of: (p: Point) => number): { last: number; all: number } {
  const xs = points.map((p) => Math.log(p.at));
  const ys = points.map((p) => Math.log(of(p)));
  const mean = (a: readonly number[]): number => a.reduce((s, x) => s + x, 0) / a.length;
  const [mx, my] = [mean(xs), mean(ys)];
  const rise = xs.reduce((s, x, i) => s + (x - mx) * (ys[i] - my), 0);
  const run = xs.reduce((s, x) => s + (x - mx) ** 2, 0);
  const n = xs.length;
  return { last: (ys[n - 1] - ys[n - 2]) / (xs[n - 1] - xs[n - 2]), all: rise / run };
}

function shown(name: string, points: readonly Point[]): string {
  const [time, memory] = [slopes(points, (p) => p.ms), slopes(points, (p) => p.bytes)];
  const rows = points.map((p) => [`${p.at}`, p.ms.toPrecision(3), mib(p.bytes)]);
  return `${table([name, "ms", "MiB"], rows)}\nslope: time ${time.all.toFixed(2)} (last two ${
    time.last.toFixed(2)
  }), ` +
    `memory ${memory.all.toFixed(2)} (last two ${memory.last.toFixed(2)})\n`;
}

function figures(name: string, points: readonly Point[]): string[] {
  const axes = { x: { name, log: true }, y: { log: true } };
  const draw = (title: string, of: (p: Point) => number, color: string): string =>
    chart(
      `${title} against ${name}`,
      [{ name: title, points: points.map((p) => [p.at, of(p)]), color, marks: true }],
      axes,
    );
  return [
    draw("milliseconds", (p) => p.ms, "#2563eb"),
    draw("MiB of temporaries", (p) => p.bytes / 2 ** 20, "#dc2626"),
  ];
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["threads", "out"],
    boolean: ["quick"],
    default: {
      threads: `${navigator.hardwareConcurrency}`,
      out: new URL("./scaling.html", import.meta.url).pathname,
    },
  });
  const threads = Number(flags.threads);
  const count = flags.quick ? 2 : 6;
  console.log(await machine());
  const { T, layers, d, V, rank, batch } = BASE;
  console.log(
    `what:    LoRA step of a Llama: T ${T}, ${layers} layers, d ${d}, V ${V}, rank ${rank}, ` +
      `batch ${batch}; one of them varied; ${threads} threads\n`,
  );
  const drawn: string[] = [];
  for (const size of Object.keys(VALUES) as Size[]) {
    const points: Point[] = [];
    const values = flags.quick ? VALUES[size].slice(0, 3) : VALUES[size];
    for (const at of values) {
      points.push({ ...await step({ ...BASE, [size]: at }, threads, count), at });
    }
    console.log(shown(size, points));
    drawn.push(...figures(size, points));
  }
  const lengths: Point[] = [];
  for (const t of LENGTHS) lengths.push(await attended(t, threads, count));
  console.log(shown("T, attention alone", lengths));
  drawn.push(...figures("T, attention alone", lengths));
  await Deno.writeTextFile(flags.out, page("How the cost of a step grows", charts(drawn)));
  console.log(`plot: ${flags.out}`);
  const { last } = slopes(lengths, (p) => p.bytes);
  if (!(last <= LINEAR)) {
    console.error(`attention's memory grows with T to the power of ${last.toFixed(2)}`);
    Deno.exit(1);
  }
  Deno.exit(0);
}

/**
 * One rank of `ddp.ts`: what steps take with and without the others, and what their all-reduces take
 * alone.
 */

import { init, tensor } from "@graft/ml";
import { DistributedDataParallel, initProcessGroup, type ProcessGroup } from "@graft/ml/dist";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import { bucketsOf } from "../dist/buckets.ts";
import { SMALL, STORIES_15M } from "./llama.ts";
import { median } from "./report.ts";

/** What a rank measures. */
export interface RankJob {
  readonly method: "lora" | "full";
  readonly model: "small" | "stories15m";
  readonly steps: number;
  /** Rows of each rank. */
  readonly rows: number;
  readonly sequence: number;
  readonly bucketBytes: number;
}

/** Medians, in seconds, of the slowest rank each time. */
export interface Measured {
  readonly ranks: number;
  /** A step of a rank by itself, while the others do the same. */
  readonly compute: number;
  /** A step of all together. */
  readonly step: number;
  /** The all-reduces of a step, with nothing beside them. */
  readonly communication: number;
  /** Bytes of each bucket, in order. */
  readonly buckets: readonly number[];
  /** All-reduces by size: bytes and seconds. */
  readonly sizes: readonly (readonly [bytes: number, seconds: number])[];
}

const SIZES = [4, 64, 1024, 8192, 65536].map((kib) => kib * 1024);

/** A training, whose steps take turns with others'. */
function trainer(
  job: RankJob,
  group: ProcessGroup | null,
): { step(): Promise<void>; sizes: number[] } {
  const config = job.model === "small" ? SMALL : STORIES_15M;
  const model = new LlamaForCausalLM(config);
  if (job.method === "lora") inject(model, { r: 8, target_modules: "all-linear" });
  const { bucketBytes, rows, sequence } = job;
  const ddp = group && new DistributedDataParallel(model, group, { bucketBytes });
  const trained = model.trainable();
  const optimizer = new AdamW(trained, { lr: 1e-3 });
  const token = (i: number): number => (i * 31 + (i >> 3)) % config.vocab_size;
  const ids = (shift: number): Int32Array<ArrayBuffer> =>
    Int32Array.from({ length: rows * sequence }, (_, i) => token(i + shift));
  const targetCount = rows * sequence;
  const shape = [rows, sequence] as const;
  const named = model.namedParameters().filter(([, p]) => p.requiresGrad).reverse();
  return {
    sizes: bucketsOf(named, bucketBytes).map(({ length }) => 4 * length),
    async step(): Promise<void> {
      const batch = { inputs: ids(0), targets: ids(1), shape, targetCount };
      const loss = ddp ? ddp.loss(batch) : model.loss(batch);
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      await loss.item();
    },
  };
}

/** Measures; every rank gives the same. */
export async function main(job: RankJob): Promise<Measured> {
  const group = await initProcessGroup();
  const device = await init({ device: "cpu", threads: 1 });
  await tensor([0]).data();
  // From when all are there to when the last one is done.
  const timed = async (fn: () => Promise<unknown>): Promise<number> => {
    await group.barrier();
    const start = performance.now();
    await fn();
    const seconds = Float64Array.of((performance.now() - start) / 1000);
    return (await group.allReduce(seconds, { op: "max" }))[0];
  };
  const alone = trainer(job, null);
  const together = trainer(job, group);
  const data = alone.sizes.map((bytes) => new Float32Array(bytes / 4));
  const reduceAll = async (): Promise<void> => {
    await group.allReduce(new Float64Array(5));
    for (const bucket of data) await group.allReduce(bucket);
  };
  const times: [number, number, number][] = [];
  // Bandwidth falls where arrays outgrow the caches: only sizes such as the job's own count.
  const most = 2 * Math.max(...alone.sizes);
  const each = SIZES.filter((bytes) => bytes <= most).map((bytes) => ({
    bytes,
    array: new Float32Array(bytes / 4),
    taken: [0],
  }));
  for (let i = 0; i < job.steps + 3; i++) {
    // In turns, so that all meet the same machine: what a size takes is to tell what a step's buckets
    // take, so both come after a step, which has filled the caches with other things.
    const compute = await timed(() => alone.step());
    for (const k of each.keys()) {
      const { array, taken } = each[(i + k) % each.length];
      const seconds = await timed(() => group.allReduce(array));
      if (i >= 3) taken.push(seconds);
    }
    const step = await timed(() => together.step());
    const communication = await timed(reduceAll);
    if (i >= 3) times.push([compute, step, communication]);
  }
  const sizes = each.map(({ bytes, taken }) => [bytes, median(taken.slice(1))] as const);
  const ranks = group.size;
  const first = group.rank === 0;
  await group.close();
  await device.close();
  const [compute, step, communication] = [0, 1, 2].map((k) => median(times.map((t) => t[k])));
  const measured = { ranks, compute, step, communication, buckets: alone.sizes, sizes };
  if (import.meta.main && first) console.log(JSON.stringify(measured));
  return measured;
}

if (import.meta.main) await main(JSON.parse(Deno.args[0]));

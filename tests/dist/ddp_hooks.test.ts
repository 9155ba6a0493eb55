/** What goes over the wire: how much of it, when, and what compression makes of it. */

import { assert, assertEquals } from "@std/assert";
import {
  type Bucket,
  f16Compression,
  type GradientHook,
  localGroups,
  powerSgd,
} from "@graft/ml/dist";
import { Collectives } from "../../dist/collectives.ts";
import { createSharedMemory } from "../../dist/local/memory.ts";
import { LocalTransport } from "../../dist/local/transport.ts";
import { distance, withDevices } from "./ddp_ranks.ts";
import { type Job, tinyLlama, trainRank } from "./ddp_train.ts";

const ROWS = 40, COLUMNS = 30;

const BUCKET: Bucket = {
  index: 0,
  length: ROWS * COLUMNS + 7,
  entries: [
    { name: "w", shape: [ROWS, COLUMNS], offset: 0, length: ROWS * COLUMNS },
    { name: "b", shape: [7], offset: ROWS * COLUMNS, length: 7 },
  ],
};

/** A gradient of rank `rank` whose matrix is a sum of so many products of vectors. */
function gradient(seed: number, products: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: BUCKET.length }, (_, at) => {
    const [i, j] = [Math.floor(at / COLUMNS), at % COLUMNS];
    let sum = 0;
    for (let k = 1; k <= products; k++) {
      sum += Math.sin(k * (i + 2) * (seed + 1.3)) * Math.cos(k * k * (j + 1.7) * (seed + 1));
    }
    return sum;
  });
}

function sumOf(parts: readonly Float32Array[]): Float32Array {
  return parts[0].map((_, i) => parts.reduce((sum, part) => sum + part[i], 0));
}

/** What each rank's own `hooks[rank]` makes of `parts[rank]`. */
async function reduceAll(
  hooks: readonly GradientHook[],
  parts: readonly Float32Array<ArrayBuffer>[],
): Promise<Float32Array> {
  const groups = localGroups(hooks.length, { timeout: 20_000 });
  const results = await Promise.all(
    groups.map((group, rank) => hooks[rank].reduce(BUCKET, parts[rank].slice(), group)),
  );
  for (const result of results) assertEquals(result, results[0], "the same bits on every rank");
  return results[0];
}

Deno.test("hooks: f16 keeps 11 bits of each value, whatever the scale", async () => {
  const hooks = [0, 1, 2].map(f16Compression);
  for (const scale of [1e-30, 1, 1e30]) {
    const parts = [0, 1, 2].map((rank) => gradient(rank, 3).map((x) => x * scale));
    const off = distance(await reduceAll(hooks, parts), sumOf(parts));
    assert(off > 0 && off < 2 ** -11, `${off}`);
  }
  const zeros = [0, 1, 2].map(() => new Float32Array(BUCKET.length));
  assertEquals(await reduceAll(hooks, zeros), zeros[0]);
  for (const bad of [NaN, Infinity]) {
    zeros[1][5] = bad;
    assertEquals((await reduceAll(hooks, zeros)).findIndex(Number.isFinite), -1);
  }
});

Deno.test("hooks: PowerSGD is exact where the sum has its rank", async () => {
  const hooks = [0, 1].map(() => powerSgd({ rank: 2, startStep: 1 }));
  const parts = [0, 1].map((rank) => gradient(rank, 1));
  const whole = sumOf(parts);
  assertEquals(await reduceAll(hooks, parts), whole, "the first step sends everything");
  const off = distance(await reduceAll(hooks, parts), whole);
  assert(off > 0 && off < 1e-5, `${off}`);
  const lower = [parts[0], parts[0]];
  const lowerOff = distance(await reduceAll(hooks, lower), sumOf(lower));
  assert(lowerOff < 1e-5, `a sum of less rank: ${lowerOff}`);
  // A step that is not finite is not on any rank, and is forgotten.
  const broken = parts.map((part) => part.slice());
  broken[1][8] = NaN;
  assertEquals(Number.isFinite((await reduceAll(hooks, broken))[0]), false);
  assert(distance(await reduceAll(hooks, parts), whole) < 1e-5);
});

Deno.test("hooks: PowerSGD loses nothing for good", async () => {
  const hooks = [0, 1].map(() => powerSgd({ rank: 2, startStep: 0 }));
  const parts = [0, 1].map((rank) => gradient(rank, 4));
  const whole = sumOf(parts);
  const sent = new Float32Array(BUCKET.length);
  const missing: number[] = [];
  for (let step = 1; step <= 40; step++) {
    (await reduceAll(hooks, parts)).forEach((x, i) => sent[i] += x);
    // What is left out stays bounded, so its share of all that should have been sent goes down.
    missing.push(distance(sent, whole.map((x) => x * step)));
  }
  assert(missing[0] > 0.2, "one step alone is far from exact");
  assert(missing[39] < missing[0] / 8, `${missing}`);
});

/** A transport that counts what an optimal all-reduce has to send, in bytes a rank. */
class Counting extends LocalTransport {
  bytes = 0;

  override async agree(hash: number): Promise<boolean> {
    this.#count(8);
    return await super.agree(hash);
  }
  override async allReduce(
    ...args: Parameters<LocalTransport["allReduce"]>
  ): Promise<void> {
    this.#count(args[0].byteLength);
    await super.allReduce(...args);
  }
  override async allGather(mine: Uint8Array, all: Uint8Array): Promise<void> {
    this.bytes += mine.length * (this.size - 1);
    await super.allGather(mine, all);
  }
  override async allToAll(mine: Uint8Array, all: Uint8Array): Promise<void> {
    this.bytes += mine.length * (this.size - 1) / this.size;
    await super.allToAll(mine, all);
  }
  #count(bytes: number): void {
    this.bytes += bytes * 2 * (this.size - 1) / this.size;
  }
}

const JOB: Job = { method: "lora", optimizer: "adamw", steps: 12, rows: 8 };

/** Bytes that a rank of four sends in a step, and how training went. */
async function costOf(hook: () => GradientHook | undefined): Promise<[number, readonly number[]]> {
  let found: [number, readonly number[]] = [0, []];
  await withDevices("cpu", 4, async (devices) => {
    const sent = async (steps: number): Promise<[number, readonly number[]]> => {
      const memory = createSharedMemory(4);
      const transports = devices.map((_, rank) => new Counting(memory, rank));
      const outcomes = await Promise.all(
        transports.map((transport, i) =>
          trainRank(new Collectives(transport), devices[i], { ...JOB, steps }, {
            hook: hook(),
            bucketBytes: 2 ** 20,
          })
        ),
      );
      for (const { parameters } of outcomes) assertEquals(parameters, outcomes[0].parameters);
      return [transports[0].bytes, outcomes[0].losses];
    };
    const [few] = await sent(JOB.steps - 2);
    const [many, losses] = await sent(JOB.steps);
    found = [(many - few) / 2, losses];
  });
  return found;
}

Deno.test({
  name: "ddp: a step sends what it trains, less with compression",
  // Workers outlive a test by a moment.
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    let trainable = 0;
    await withDevices("cpu", 1, () => {
      trainable = tinyLlama("lora").trainable().reduce((n, p) => n + p.size, 0);
      return Promise.resolve();
    });
    const needed = trainable * 4 * 2 * 3 / 4;
    const metrics = 5 * 8 * 2 * 3 / 4; // of the test's own loss
    const [plain, losses] = await costOf(() => undefined);
    assert(plain - metrics >= needed && plain - metrics < 1.02 * needed, `${plain} of ${needed}`);
    const [half, halfLosses] = await costOf(f16Compression);
    assert(half < 0.52 * plain, `f16 sends ${half} of ${plain}`);
    const [thin, thinLosses] = await costOf(() => powerSgd({ rank: 1, startStep: 2 }));
    assert(thin < 0.6 * plain, `PowerSGD sends ${thin} of ${plain}`);
    for (const [other, most] of [[halfLosses, 0.01], [thinLosses, 0.5]] as const) {
      const off = Math.abs(other.at(-1)! - losses.at(-1)!);
      assert(off < most * (losses[0] - losses.at(-1)!), `ends ${off} away`);
    }
  },
});

Deno.test({
  name: "ddp: buckets are reduced while backward goes on, by plans that are replayed",
  // Workers outlive a test by a moment.
  sanitizeOps: false,
  sanitizeResources: false,
  fn: () =>
    withDevices("cpu", 2, async (devices) => {
      const groups = localGroups(2, { timeout: 20_000 });
      const [{ flushes }] = devices;
      const plansOf = async (steps: number): Promise<number> => {
        const { built } = flushes;
        const job: Job = { method: "full", optimizer: "sgd", steps, rows: 4 };
        await Promise.all(groups.map((group, i) => trainRank(group, devices[i], job)));
        return flushes.built - built;
      };
      assertEquals(await plansOf(8), await plansOf(3));
      const { labels } = devices[0].lastReport!;
      const buckets = new Set(labels.filter((label) => label.startsWith("the all-reduce of")));
      const [first, last] = [[...buckets][0], [...buckets].at(-1)!];
      const [begins, ends] = [labels.indexOf(first), labels.lastIndexOf(first)];
      assertEquals(first.includes("bucket 0"), true);
      const beside = labels.slice(begins, labels.indexOf(last));
      assert(beside.includes("attentionBackward"), `beside bucket 0 run ${beside}`);
      assert(ends > labels.lastIndexOf("attentionBackward"), "nothing waits for it before");
    }),
});

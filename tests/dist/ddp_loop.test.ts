/** What a data-parallel loop may do beside the plain steps, and what it must not. */

import { assert, assertEquals } from "@std/assert";
import { dropout, flush, manualSeed, ones, type Tensor, tensor, Variable } from "@graft/ml";
import { DataLoader } from "@graft/ml/data";
import {
  DistributedDataParallel,
  type JoinableBatch,
  rankGenerator,
  reduceMetrics,
  runLocal,
} from "@graft/ml/dist";
import { Linear, Module, Parameter, quantize, QuantizedParameter } from "@graft/ml/nn";
import { SGD } from "@graft/ml/optim";
import { asRanks, distance, type Rank, ranks } from "./ddp_ranks.ts";
import { text, tinyLlama } from "./ddp_train.ts";

/** Two parameters, and a buffer that the forward pass assigns. */
class Pair extends Module {
  a: Parameter<"f32"> = new Parameter(tensor([1, 2]));
  b: Parameter<"f32"> = new Parameter(tensor([[3, 4], [5, 6]]));
  seen: Variable<"f32"> = new Variable(tensor([0]));

  /** The gradients are `x`, and `y` everywhere. */
  loss(x: readonly number[], y: number | null): Tensor {
    const first = this.a.mul(tensor(x)).sum();
    return y === null ? first : first.add(this.b.mul(y).sum());
  }
}

/** The messages of ranks that have all failed. */
async function failures(count: number, fn: (rank: Rank) => Promise<unknown>): Promise<string[]> {
  return (await asRanks(count, fn)).map((result, rank) => {
    assert(result.status === "rejected", `rank ${rank} did not fail`);
    return (result.reason as Error).message;
  });
}

function numbers(values: ArrayLike<number>): number[] {
  return Array.from(values);
}

async function gradients({ a, b }: Pair): Promise<number[][]> {
  return [numbers(await a.grad!.data()), numbers(await b.grad!.data())];
}

Deno.test("ddp: ranks that differ get an error that names the first difference", async (t) => {
  const all = async (fn: (rank: Rank) => Promise<unknown>, message: string): Promise<void> => {
    const messages = await failures(3, fn);
    for (const got of messages) assert(got.includes(message), got);
  };
  await t.step("shapes", () =>
    all(async ({ group }) => {
      new DistributedDataParallel(new Linear(2, group.rank === 2 ? 4 : 3), group);
      await flush();
    }, "number 0 is weight f32[3, 2] on rank 0, and weight f32[4, 2] on rank 2"));
  await t.step("names", () =>
    all(async ({ group }) => {
      new DistributedDataParallel(
        group.rank === 1 ? new Linear(2, 3, { bias: false }) : new Linear(2, 3),
        group,
      );
      await flush();
    }, "number 1 is bias f32[3] on rank 0, and nothing more on rank 1"));
  await t.step("frozen parameters", () =>
    all(async ({ group, here }) => {
      const ddp = new DistributedDataParallel(new Pair(), group);
      await flush();
      here();
      if (group.rank === 1) ddp.module.freeze(/^a$/);
      ddp.module.loss([1, 1], 1).backward();
      await flush();
    }, "number 1 is a f32[2] on rank 0, and b f32[2, 2] on rank 1"));
  await t.step("unused parameters", () =>
    all(async ({ group }) => {
      const ddp = new DistributedDataParallel(new Pair(), group);
      ddp.module.loss([1, 1], group.rank === 2 ? null : 1).backward();
      await flush();
    }, "number 2 is b f32[2, 2] on rank 0, and nothing more on rank 2; where ranks may differ"));
  await t.step("settings", () =>
    all(async ({ group }) => {
      const options = group.rank === 1 ? { bucketBytes: 4096 } : {};
      const ddp = new DistributedDataParallel(new Pair(), group, options);
      ddp.module.loss([1, 1], 1).backward();
      await flush();
    }, "on rank 0, and buckets of 4096 bytes, not compressed on rank 1"));
  await t.step("steps", () =>
    all(async ({ group, here }) => {
      const ddp = new DistributedDataParallel(new Pair(), group);
      for (let step = 0; step < (group.rank === 1 ? 3 : 2); step++) {
        here();
        ddp.module.loss([1, 1], 1).backward();
        await flush();
      }
      await reduceMetrics(group, { loss: 1 });
    }, 'rank 1 called allReduce of 5 f64 (sum, "the gradients of backward 2")'));
});

Deno.test("ddp: shares are weighed, and accumulated with and without reduction", async () => {
  const results = await ranks(2, async ({ group, here }) => {
    const ddp = new DistributedDataParallel(new Pair(), group, { bucketBytes: 1 });
    const pair = ddp.module;
    const backward = (x: readonly number[], y: number, count: number | Tensor): void => {
      here();
      ddp.weigh(count);
      pair.loss(x, y).backward();
    };
    const r = group.rank;
    const found: number[][][] = [];
    backward([r, 1], r, r === 0 ? 3 : 1);
    found.push(await gradients(pair)); // 1/4 of rank 1's
    backward([4 * r, 0], 8, tensor(r));
    found.push(await gradients(pair)); // and all of rank 1's
    ddp.noSync(() => backward([r, r], 2 * r, 1));
    here();
    await flush();
    backward([0, r], r, 1);
    found.push(await gradients(pair)); // and half of rank 1's, twice
    pair.a.grad = pair.b.grad = null;
    ddp.noSync(() => backward([r, r], 2 * r, 1));
    backward([0, r], r, 1);
    found.push(await gradients(pair)); // the same without what was before
    here();
    pair.a.grad = null; // b's is reduced, a's is not there
    backward([NaN, 1], 1, 0);
    const [a] = await gradients(pair);
    found.push([a]); // nobody counts
    return found;
  });
  assertEquals(results[1], results[0]);
  assertEquals(results[0], [
    [[0.25, 1], [0.25, 0.25, 0.25, 0.25]],
    [[4.25, 1], [8.25, 8.25, 8.25, 8.25]],
    [[4.75, 2], [9.75, 9.75, 9.75, 9.75]],
    [[0.5, 1], [1.5, 1.5, 1.5, 1.5]],
    [[0, 0]],
  ]);
});

Deno.test("ddp: what is trained may change from step to step", async () => {
  const results = await ranks(2, async ({ group, here }) => {
    const ddp = new DistributedDataParallel(new Pair(), group);
    const pair = ddp.module;
    const found: (number[] | null)[][] = [];
    for (const frozen of [/^b$/, /^a$/, null]) {
      here();
      pair.unfreeze(/./);
      if (frozen) pair.freeze(frozen);
      pair.loss([group.rank, 1], 4 * group.rank).backward();
      await flush();
      const grads = [pair.a, pair.b].map(({ grad }) => grad);
      const step: (number[] | null)[] = [];
      for (const grad of grads) step.push(grad && numbers(await grad.data()));
      found.push(step);
      pair.a.grad = pair.b.grad = null;
    }
    return found;
  });
  for (const found of results) {
    assertEquals(found, [[[0.5, 1], null], [null, [2, 2, 2, 2]], [[0.5, 1], [2, 2, 2, 2]]]);
  }
});

Deno.test("ddp: unused parameters count as zeros where ranks may differ", async () => {
  const results = await ranks(2, async ({ group }) => {
    const ddp = new DistributedDataParallel(new Pair(), group, { findUnused: true });
    ddp.module.loss([1, 2], group.rank === 1 ? 6 : null).backward();
    return await gradients(ddp.module);
  });
  for (const found of results) assertEquals(found, [[1, 2], [3, 3, 3, 3]]);
});

Deno.test("ddp: parameters and buffers are rank 0's, and buffers stay so", async () => {
  const results = await ranks(3, async ({ group, here }) => {
    const pair = new Pair();
    pair.a.assign(tensor([group.rank + 7, 8]));
    pair.seen.assign(tensor([group.rank + 1]));
    const ddp = new DistributedDataParallel(pair, group);
    const found = [numbers(await pair.a.data()), numbers(await pair.seen.data())];
    for (let step = 0; step < 2; step++) {
      here();
      pair.seen.assign(pair.seen.add(tensor([10 * (group.rank + 1)])));
      ddp.module.loss([1, 1], 1).backward();
      await flush();
      found.push(numbers(await pair.seen.data()));
    }
    return found;
  });
  for (const found of results) assertEquals(found, [[7, 8], [1], [11], [21]]);
});

/** Trains a tiny Llama on batches; gives its parameters. */
async function trained(
  { group, here }: Rank,
  batches: Iterable<JoinableBatch>,
): Promise<Float32Array> {
  using ddp = new DistributedDataParallel(tinyLlama("lora"), group);
  const parameters = ddp.module.trainable();
  const optimizer = new SGD(parameters, { lr: 0.05 });
  for await (const batch of ddp.join(batches)) {
    here();
    ddp.loss(batch).backward();
    await optimizer.step();
    optimizer.zeroGrad();
  }
  const values: number[] = [];
  for (const p of parameters) values.push(...numbers(await p.data() as Float32Array));
  return Float32Array.from(values);
}

Deno.test("ddp: ranks with fewer batches join in until the last is through", async () => {
  const take = (from: number, count: number, rows: number): JoinableBatch[] => {
    const loader = new DataLoader(text, { batchSize: rows, shuffle: false, epochs: 1 });
    return [...loader].slice(from, from + count);
  };
  // Rank 0 has rows 0 and 1, rank 1 has rows 2, 3 and 4 one by one, rank 2 none at all.
  const shares = [take(0, 2, 1), take(2, 3, 1), []];
  const uneven = await ranks(3, (rank) => trained(rank, shares[rank.group.rank]));
  const joint = (rows: number[]): JoinableBatch => {
    const parts = rows.map((row) => take(row, 1, 1)[0]);
    return {
      inputs: Int32Array.from(parts.flatMap((p) => [...p.inputs])),
      targets: Int32Array.from(parts.flatMap((p) => [...p.targets])),
      shape: [rows.length, 16],
      targetCount: parts.reduce((n, p) => n + p.targetCount, 0),
    };
  };
  const [one] = await ranks(1, (rank) => trained(rank, [joint([0, 2]), joint([1, 3]), joint([4])]));
  for (const parameters of uneven) assertEquals(parameters, uneven[0]);
  assert(distance(uneven[0], one) < 1e-6, `differ by ${distance(uneven[0], one)}`);
});

Deno.test({
  name: "ddp: dropout differs by rank, and is the same in a second run",
  // Workers outlive a test by a moment.
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const module = `
      import { dropout, init, manualSeed, ones } from "@graft/ml";
      import { DistributedDataParallel, initProcessGroup } from "@graft/ml/dist";
      import { Linear } from "@graft/ml/nn";
      export async function main() {
        await using group = await initProcessGroup();
        const device = await init({ device: "cpu", threads: 1 });
        manualSeed(3);
        new DistributedDataParallel(new Linear(2, 1), group);
        const kept = [...await dropout(ones([64]), 0.5).data()];
        await device.close();
        return kept;
      }`;
    const address = new URL(`data:text/javascript,${encodeURIComponent(module)}`);
    const first = await runLocal(address, { size: 2 });
    assertEquals(await runLocal(address, { size: 2 }), first);
    assert(`${first[0]}` !== `${first[1]}`);
    const [alone] = await ranks(1, async () => {
      manualSeed(3);
      new Linear(2, 1); // takes as many draws
      return numbers(await dropout(ones([64]), 0.5).data());
    });
    assertEquals(first[0], alone, "rank 0 is one device");
    assertEquals(rankGenerator({ seed: 2 ** 53 - 1, counter: 4 }, 1023).counter, 4);
  },
});

Deno.test("metrics: the mean is over all ranks' targets, NaN is everybody's", async () => {
  const results = await ranks(3, async ({ group }) => {
    const loss = [1, 4, NaN][group.rank];
    const first = await reduceMetrics(group, { loss, other: group.rank }, [3, 1, 0][group.rank]);
    const second = await reduceMetrics(group, { loss });
    return [first.loss, first.other, second.loss];
  });
  for (const found of results) assertEquals(found, [1.75, 0.25, NaN]);
});

Deno.test("ddp: packed weights are rank 0's to the bit, and LoRA over them trains", async () => {
  let turn: Promise<unknown> = Promise.resolve();
  const results = await ranks(2, async ({ group, here }) => {
    // Packing waits for the device, so the ranks of one thread take turns.
    const packed = turn.then(async () => {
      here();
      return await quantize(tinyLlama("lora", 5 + group.rank), { format: "nf4" });
    });
    turn = packed;
    const model = await packed;
    await turn;
    here();
    const weights = model.parameters().filter((p) => p instanceof QuantizedParameter);
    const floats = async (): Promise<number[]> => {
      const all: number[] = [];
      for (const weight of weights) all.push(...numbers(await weight.data() as Float32Array));
      return all;
    };
    const before = await floats();
    here();
    const ddp = new DistributedDataParallel(model, group);
    const [batch] = new DataLoader(text, { batchSize: 4, epochs: 1, shard: group });
    ddp.loss(batch).backward();
    await flush();
    return { before, after: await floats() };
  });
  assert(results[0].before.length > 10_000);
  assert(distance(results[0].before, results[1].before) > 0.1, "the ranks began apart");
  for (const { after } of results) assertEquals(after, results[0].before);
});

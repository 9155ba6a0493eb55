/** Data dealt out to ranks: every row once, to one rank, in an order that seed and epoch decide. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type Batch,
  DataLoader,
  DistributedSampler,
  IGNORED_TARGET,
  type Shard,
} from "@graft/ml/data";

/** Windows whose every token is their number plus one. */
const dataset = {
  length: 13,
  sequenceLength: 3,
  window: (index: number) => ({
    inputs: new Int32Array(3).fill(index + 1),
    targets: new Int32Array(3).fill(index + 1),
  }),
};

/** The rows that count. */
function rowsOf({ inputs, targets, shape: [rows, length] }: Batch): number[] {
  return Array.from({ length: rows }, (_, r) => r * length)
    .filter((at) => targets[at] !== IGNORED_TARGET).map((at) => inputs[at]);
}

Deno.test("loader: the shares of N ranks are one device's batches", () => {
  for (const [batchSize, size] of [[4, 1], [4, 2], [4, 3], [3, 4], [8, 4]]) {
    for (const epochs of [1, 3]) {
      const options = { batchSize, seed: 6, epochs };
      const whole = [...new DataLoader(dataset, options)].map(rowsOf);
      const shares = Array.from(
        { length: size },
        (_, rank) => [...new DataLoader(dataset, { ...options, shard: { rank, size } })],
      );
      assertEquals(whole.map((_, i) => shares.flatMap((s) => rowsOf(s[i]))), whole);
      for (const batch of shares.flat()) {
        assertEquals(batch.shape, [Math.ceil(batchSize / size), 3]);
        assertEquals(batch.targetCount, 3 * rowsOf(batch).length);
      }
    }
  }
});

Deno.test("loader: a run goes on with another number of ranks", () => {
  const options = { batchSize: 4, seed: 2 };
  const take = (loader: DataLoader): number[] => {
    for (const batch of loader) return rowsOf(batch);
    return [];
  };
  const one = new DataLoader(dataset, options);
  take(one);
  const expected = take(one);
  const first = new DataLoader(dataset, { ...options, shard: { rank: 1, size: 2 } });
  take(first);
  const got = [0, 1, 2].flatMap((rank) => {
    const loader = new DataLoader(dataset, { ...options, shard: { rank, size: 3 } });
    loader.load(first.state());
    return take(loader);
  });
  assertEquals(got, expected);
});

function dealt(length: number, size: number, options: object, epoch: number): number[][] {
  return Array.from(
    { length: size },
    (_, rank) => {
      const sampler = new DistributedSampler(length, { rank, size }, options);
      const places = [...sampler.epoch(epoch)];
      assertEquals(places.length, sampler.length);
      return places;
    },
  );
}

Deno.test("sampler: pads, drops, or takes each place once", () => {
  const all = Array.from({ length: 11 }, (_, i) => i);
  for (const size of [1, 2, 4, 16]) {
    for (const shuffle of [true, false]) {
      const once = dealt(11, size, { uneven: "none", shuffle }, 2).flat();
      assertEquals(once.toSorted((a, b) => a - b), all);
      const padded = dealt(11, size, { uneven: "pad", shuffle }, 2);
      assert(padded.every((p) => p.length === Math.ceil(11 / size)));
      assertEquals([...new Set(padded.flat())].sort((a, b) => a - b), all);
      const dropped = dealt(11, size, { uneven: "drop", shuffle }, 2);
      assert(dropped.every((p) => p.length === Math.floor(11 / size)));
      assertEquals(new Set(dropped.flat()).size, dropped.flat().length);
    }
  }
  assertEquals(dealt(5, 2, { shuffle: false }, 0), [[0, 2, 4], [1, 3, 0]]);
  const order = (epoch: number, seed: number): string => `${dealt(11, 1, { seed }, epoch)}`;
  assertEquals(order(4, 1), order(4, 1));
  assert(order(4, 1) !== order(5, 1) && order(4, 1) !== order(4, 2));
});

Deno.test("sampler: bad ranks are refused", () => {
  const wrong: [Shard, string][] = [
    [{ rank: 2, size: 2 }, "needs a rank from 0 to 1, got 2"],
    [{ rank: 0, size: 0 }, "needs a number of ranks from 1 on, got 0"],
    [{ rank: 0.5, size: 2 }, "needs a rank from 0 to 1, got 0.5"],
  ];
  for (const [shard, message] of wrong) {
    assertThrows(() => new DistributedSampler(4, shard), RangeError, message);
    assertThrows(() => new DataLoader(dataset, { batchSize: 2, shard }), RangeError, message);
  }
  assertThrows(() => new DistributedSampler(0, { rank: 0, size: 1 }), RangeError, "length");
});

/**
 * What every backend of a process group must do: run on each rank, it throws where a result is not what
 * the ranks' data make, and gives a digest of all results.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { assertEquals } from "@std/assert";
import { allGatherValues, broadcastValue, type ProcessGroup, type Reducible } from "@graft/ml/dist";

const kinds = [Float32Array, Float64Array, Int32Array, Uint32Array, Uint8Array];
/** Empty, odd, and (as f32) more than one piece of any backend. */
const lengths = [0, 1, 3, 1000, 4099, 530_001];

/** The data repeat after so many elements, so that long arrays are made and checked fast. */
const PERIOD = 29;

/** A rank's value at `i`: small whole numbers and halves, so that sums are exact in any order. */
function valueAt(rank: number, i: number, whole: boolean): number {
  const value = (i * 7 + rank * 13) % PERIOD;
  return whole ? value : value - 14.5;
}

/** Puts `value(i)` at every i; `value` has the period. */
function fillWith<T extends Reducible>(data: T, value: (i: number) => number): T {
  for (let i = 0; i < Math.min(PERIOD, data.length); i++) data[i] = value(i);
  for (let done = PERIOD; done < data.length; done *= 2) data.copyWithin(done, 0, done);
  return data;
}

function isWhole(data: Reducible): boolean {
  return !(data instanceof Float32Array || data instanceof Float64Array);
}

/** A rank's data. */
function fill<T extends Reducible>(data: T, rank: number): T {
  return fillWith(data, (i) => valueAt(rank, i, isWhole(data)));
}

/** What `allReduce` must make of all ranks' data. */
function reduced<T extends Reducible>(data: T, size: number, op: string): T {
  return fillWith(data, (i) => {
    const values = Array.from({ length: size }, (_, rank) => valueAt(rank, i, isWhole(data)));
    return op === "max" ? Math.max(...values) : values.reduce((a, b) => a + b, 0);
  });
}

/** `assertEquals` takes seconds for long arrays. */
function assertSame(actual: Reducible, expected: Reducible, what: string): void {
  const bytes = ({ buffer, byteOffset, byteLength }: Reducible) =>
    Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength);
  if (!bytes(actual).equals(bytes(expected))) assertEquals(actual, expected, what);
}

async function checkAllReduce(group: ProcessGroup): Promise<void> {
  const { rank, size } = group;
  for (const op of ["sum", "max"] as const) {
    for (const [at, Kind] of kinds.entries()) {
      const length = lengths[1 + at % 4];
      const data = fill(new Kind(length), rank);
      const result = await group.allReduce(data, { op, label: `${op} of ${Kind.name}` });
      assertEquals(result === data, true, "in place");
      assertSame(result, reduced(new Kind(length), size, op), `${op} of ${Kind.name}`);
    }
  }
  for (const length of lengths) {
    const sum = await group.allReduce(fill(new Float32Array(length), rank));
    assertSame(sum, reduced(new Float32Array(length), size, "sum"), `sum of ${length}`);
  }
}

/** Views in the middle of a buffer, and shared memory. */
async function checkBuffers(group: ProcessGroup): Promise<void> {
  const buffer = new Float32Array(new SharedArrayBuffer(40)).fill(group.rank);
  await group.allReduce(buffer.subarray(2, 5), { op: "max" });
  const expected = new Float32Array(10).fill(group.rank).fill(group.size - 1, 2, 5);
  assertEquals([...buffer], [...expected], "only the view is written");
}

async function checkMoves(group: ProcessGroup): Promise<void> {
  const { rank, size } = group;
  for (const [at, length] of lengths.entries()) {
    const root = at % size;
    const data = fill(new Float32Array(length), rank);
    await group.broadcast(data, { root });
    assertSame(data, fill(new Float32Array(length), root), `broadcast of ${length}`);
    const all = await group.allGather(fill(new Float32Array(length), rank));
    assertEquals(all.length, size);
    for (const [from, part] of all.entries()) {
      assertSame(part, fill(new Float32Array(length), from), `allGather of ${length}`);
    }
  }
  for (const length of [0, 1, 1000, 300_001]) {
    // Element i of part r from rank s says all three.
    const at = (part: number, from: number, i: number) => part * 2 ** 21 + from * 2 ** 19 + i;
    const data = Uint32Array.from(
      { length: size * length },
      (_, i) => at(Math.floor(i / length), rank, i % length),
    );
    const dealt = await group.allToAll(data);
    const right = dealt.every((x, i) => x === at(rank, Math.floor(i / length), i % length));
    assertEquals([dealt.length, right], [size * length, true], `allToAll of ${length}`);
  }
  const bigints = await group.allGather(BigInt64Array.of(2n ** 40n + BigInt(rank)));
  assertEquals(bigints.map(([value]) => value), bigints.map((_, i) => 2n ** 40n + BigInt(i)));
  const names = await allGatherValues(group, { name: "é".repeat(rank) });
  assertEquals(names, Array.from({ length: size }, (_, i) => ({ name: "é".repeat(i) })));
  const root = size - 1;
  assertEquals(await broadcastValue(group, rank === root ? [1, "a"] : undefined, { root }), [
    1,
    "a",
  ]);
}

/** Calls that nobody awaits run in their order, and together with what the thread does. */
async function checkOrder(group: ProcessGroup): Promise<void> {
  const done: number[] = [];
  const turns = Array.from({ length: 5 }, async (_, turn) => {
    if (turn === 2) await group.barrier();
    else await group.allReduce(Int32Array.of(turn));
    done.push(turn);
  });
  await Promise.all(turns);
  assertEquals(done, [0, 1, 2, 3, 4]);
}

/** Sums whose bits depend on the order: every rank gets the same ones. */
async function digest(group: ProcessGroup): Promise<string> {
  const data = new Float32Array(5003);
  for (let i = 0; i < data.length; i++) data[i] = Math.sin(i * (group.rank + 1.7)) * 10 ** (i % 7);
  await group.allReduce(data);
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  for (const other of await group.allGather(hash)) assertEquals(other, hash, "the same bits");
  return hash.toHex();
}

/** Checks a group; gives the digest of a sum in which the order of ranks shows. */
export async function checkGroup(group: ProcessGroup): Promise<string> {
  await checkAllReduce(group);
  await checkBuffers(group);
  await checkMoves(group);
  await checkOrder(group);
  return await digest(group);
}

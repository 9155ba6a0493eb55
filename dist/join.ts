/**
 * Uneven numbers of batches.
 *
 * @module
 */

import type { ProcessGroup } from "./group.ts";

/** A batch of tokens, as `DataLoader` makes them. */
export interface JoinableBatch {
  /** Token ids, [B, T]. */
  readonly inputs: Int32Array<ArrayBuffer>;
  /** The token after each, or -100, [B, T]. */
  readonly targets: Int32Array<ArrayBuffer>;
  /** B rows of T tokens. */
  readonly shape: readonly [batch: number, sequence: number];
  /** How many targets count. */
  readonly targetCount: number;
}

/** See `DistributedDataParallel.join`. */
export async function* joined<B extends JoinableBatch>(
  group: ProcessGroup,
  batches: Iterable<B> | AsyncIterable<B>,
): AsyncGenerator<B> {
  const iterator = Symbol.asyncIterator in batches
    ? batches[Symbol.asyncIterator]()
    : batches[Symbol.iterator]();
  let last: B | null = null;
  let ended = false;
  try {
    for (;;) {
      const next: IteratorResult<B> | null = ended ? null : await iterator.next();
      ended = next === null || next.done === true;
      const batch = next === null || next.done ? null : next.value;
      const shape = Int32Array.from(batch?.shape ?? [0, 0]);
      const [rows, length] = await group.allReduce(shape, { op: "max", label: "join" });
      if (rows === 0) return;
      const mine: B = batch ?? ignored(last, rows, length);
      last = mine;
      yield mine;
    }
  } finally {
    if (!ended) await iterator.return?.();
  }
}

/** A batch whose targets are all ignored, of the shape of `like` or else of [rows, length]. */
function ignored<B extends JoinableBatch>(like: B | null, rows: number, length: number): B {
  const shape = like?.shape ?? [rows, length];
  const size = shape[0] * shape[1];
  return {
    ...like,
    inputs: new Int32Array(size),
    targets: new Int32Array(size).fill(-100),
    shape,
    targetCount: 0,
  } as B;
}

/**
 * Small values of differing sizes, from rank to rank.
 *
 * @module
 */

import type { CollectiveOptions, ProcessGroup } from "./group.ts";

/**
 * Every rank's `value`, by rank, for small things whose size may differ: names, shapes, settings. A
 * value is whatever JSON can say.
 *
 * @throws Error as `ProcessGroup.allGather` does.
 */
export async function allGatherValues<T>(
  group: ProcessGroup,
  value: T,
  options: CollectiveOptions = {},
): Promise<T[]> {
  const text = new TextEncoder().encode(JSON.stringify(value));
  const lengths = await group.allGather(Uint32Array.of(text.length), options);
  const padded = new Uint8Array(Math.max(...lengths.map((length) => length[0])));
  padded.set(text);
  const texts = await group.allGather(padded, options); // size arrays of the longest length
  return texts.map((bytes, rank) =>
    JSON.parse(new TextDecoder().decode(bytes.subarray(0, lengths[rank][0])))
  );
}

/**
 * The `value` of `root` on every rank; the others' is not looked at, and may be left out.
 *
 * @throws Error as `ProcessGroup.broadcast` does.
 */
export async function broadcastValue<T>(
  group: ProcessGroup,
  value?: T,
  options: CollectiveOptions & { readonly root?: number } = {},
): Promise<T> {
  const root = options.root ?? 0;
  const text = new TextEncoder().encode(group.rank === root ? JSON.stringify(value) : "");
  const [length] = await group.broadcast(Uint32Array.of(text.length), options);
  const bytes = group.rank === root ? text : new Uint8Array(length);
  return JSON.parse(new TextDecoder().decode(await group.broadcast(bytes, options)));
}

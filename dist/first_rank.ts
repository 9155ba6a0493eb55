/**
 * What one rank does for all.
 *
 * @module
 */

import type { ProcessGroup } from "./group.ts";
import { broadcastValue } from "./values.ts";

/**
 * Runs `fn` on rank 0, while the others wait: how files are written. Where it fails, it fails on all.
 *
 * @param what What is done, for errors: "saving the checkpoint".
 * @throws On rank 0 what `fn` throws; on the others an Error with its message.
 *
 * @example
 * ```ts
 * import { onFirstRank, singleGroup } from "@graft/ml/dist";
 *
 * const group = singleGroup(); // in a program: await initProcessGroup()
 * await onFirstRank(group, "saving", () => Deno.writeTextFile("/dev/null", "weights"));
 * ```
 */
export async function onFirstRank(
  group: ProcessGroup,
  what: string,
  fn: () => Promise<unknown>,
): Promise<void> {
  let failure: { readonly error: unknown } | null = null;
  if (group.rank === 0) {
    try {
      await fn();
    } catch (error) {
      failure = { error };
    }
  }
  const { error } = failure ?? {};
  const message = error instanceof Error ? error.message : String(error);
  const told = await broadcastValue(group, failure && message, { label: what });
  if (failure) throw failure.error;
  if (told !== null) throw new Error(`${what}: rank 0 failed: ${told}`);
}

/**
 * Reading golden files, and holding results against them.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { openSafetensors, type Tensor, tensor } from "@graft/ml";

/** This folder. */
export const here: string = new URL(".", import.meta.url).pathname;

/** A golden file. */
export interface Golden {
  readonly keys: readonly string[];
  floats(key: string): Promise<Float32Array>;
  ints(key: string): Promise<Tensor>;
  tensor(key: string): Promise<Tensor>;
}

/** Opens the golden file at `path` in this folder. */
export async function golden(path: string): Promise<Golden & AsyncDisposable> {
  const file = await openSafetensors(`${here}${path}`);
  return {
    keys: file.names,
    floats: async (key) => new Float32Array((await file.read(key)).buffer),
    ints: async (key) =>
      tensor(new Int32Array((await file.read(key)).buffer), {
        shape: file.entries.get(key)!.shape,
      }),
    tensor: async (key) => {
      const { dtype, shape } = file.entries.get(key)!;
      const { buffer } = await file.read(key);
      return tensor(dtype === "F32" ? new Float32Array(buffer) : new Int32Array(buffer), { shape });
    },
    [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
  };
}

/** Fails where the largest difference, against a scale of 1 or the largest value, is above `tolerance`. */
export function near(
  what: string,
  got: ArrayLike<number>,
  want: Float32Array,
  tolerance: number,
): void {
  assertEquals(got.length, want.length, what);
  const scale = want.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
  let worst = 0;
  for (let i = 0; i < want.length; i++) worst = Math.max(worst, Math.abs(got[i] - want[i]) / scale);
  assert(worst <= tolerance, `${what}: differs by ${worst}, at most ${tolerance}`);
}

/** transformers shifts its labels: logits[:, t] are held against labels[:, t + 1]. */
export function shifted(labels: Tensor): Tensor {
  return labels.slice(1, 1).pad(1, 0, 1, -100);
}

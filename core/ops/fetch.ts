import type { FetchOp, Gradient, Sample } from "../op.ts";
import { defineOp } from "../op.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** Makes an op that reads its first input at the indices in its second. */
export function fetchOp(
  name: string,
  mode: FetchOp["mode"],
  gradient: Gradient,
  samples: readonly Sample[],
): FetchOp {
  return defineOp<FetchOp>({ kind: "fetch", name, mode, gradient, samples });
}

/**
 * Checks indices: integers, and in range where they are host data. (On a device a stray index reads
 * as 0: a kernel cannot throw.)
 */
export function checkIndices(what: string, indices: Tensor, size: number): void {
  if (indices.dtype !== "i32" && indices.dtype !== "u32") {
    throw new TypeError(`${what}: needs indices of dtype i32, got ${indices.dtype}`);
  }
  const value = indices.node.value;
  if (value?.kind !== "host") return;
  const { data } = value;
  const list = new Int32Array(data.buffer, data.byteOffset, indices.size);
  for (let i = 0; i < list.length; i++) {
    if (list[i] < 0 || list[i] >= size) {
      throw new RangeError(
        `${what}: index ${list[i]} at position ${i} of ${
          show(indices.shape)
        } is not in [0, ${size})`,
      );
    }
  }
}

/**
 * Gradients as 16-bit floats on the wire.
 *
 * @module
 */

import { type Bucket, bucketLabel } from "./buckets.ts";
import type { ProcessGroup } from "./group.ts";
import type { GradientHook } from "./hooks.ts";

/** Where the largest magnitude of a sum may come to: f16 goes up to 65504. */
const TOP = 32768;

/**
 * Sends gradients in half as many bytes: each rank adds up its share of the bucket in f32, from what the
 * others send it as f16, and sends the sum round as f16. A bucket is scaled by the largest magnitude
 * that any rank has in it, a power of two, so that no sum overflows; what is 2³⁹ / size
 * times smaller than the largest vanishes. Errors are about 2⁻¹² of each value, twice.
 *
 * @example
 * ```ts ignore
 * new DistributedDataParallel(model, group, { hook: f16Compression() });
 * ```
 */
export function f16Compression(): GradientHook {
  return { name: "f16", reduce };
}

async function reduce(
  bucket: Bucket,
  data: Float32Array<ArrayBuffer>,
  group: ProcessGroup,
): Promise<Float32Array<ArrayBuffer>> {
  const label = bucketLabel(bucket);
  const [most] = await group.allReduce(Float32Array.of(largest(data)), { op: "max", label });
  // A gradient that is not finite has to stay so.
  if (!(most < Infinity)) return data.fill(NaN);
  if (most === 0) return data;
  const scale = 2 ** Math.floor(Math.log2(TOP / (group.size * most)));
  const part = Math.ceil(data.length / group.size);
  const mine = new Float16Array(part * group.size);
  for (let i = 0; i < data.length; i++) mine[i] = data[i] * scale;
  const parts = await group.allToAll(mine, { label });
  const sums = new Float16Array(part);
  for (let i = 0; i < part; i++) {
    let sum = 0;
    for (let at = i; at < parts.length; at += part) sum += parts[at];
    sums[i] = sum;
  }
  const all = await group.allGather(sums, { label });
  all.forEach((values, rank) => {
    const from = rank * part;
    const count = Math.min(part, data.length - from);
    for (let i = 0; i < count; i++) data[from + i] = values[i] / scale;
  });
  return data;
}

/** The largest magnitude; infinite where an element is not finite. */
function largest(data: Float32Array): number {
  let most = 0;
  for (let i = 0; i < data.length; i++) {
    const x = Math.abs(data[i]);
    if (!(x <= most)) most = x < Infinity ? x : Infinity;
  }
  return most;
}

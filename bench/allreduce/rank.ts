/**
 * A rank of `bench/allreduce.ts`: `rank.ts BYTES REPEATS SAMPLES` prints, on rank 0, the seconds of one
 * all-reduce, the mean of REPEATS, once a sample. `allreduce.c` is the same in C.
 *
 * @module
 */

import { initProcessGroup } from "@graft/ml/dist";

/** Runs the samples; they come back from rank 0 where threads are the ranks. */
export async function main(bytes: number, repeats: number, samples: number): Promise<number[]> {
  const group = await initProcessGroup();
  const data = new Float32Array(bytes / 4);
  const seconds: number[] = [];
  for (let sample = -1; sample < samples; sample++) { // the first is not counted
    await group.barrier();
    const start = performance.now();
    for (let i = 0; i < repeats; i++) await group.allReduce(data);
    if (sample >= 0) seconds.push((performance.now() - start) / 1000 / repeats);
  }
  if (group.rank === 0 && group.backend === "mpi") console.log(seconds.join("\n"));
  await group.close();
  return seconds;
}

if (import.meta.main) await main(...(Deno.args.map(Number) as [number, number, number]));

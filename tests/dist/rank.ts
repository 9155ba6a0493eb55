/**
 * What a rank of the tests' jobs does: `rank.ts WHAT ARGS…`. `main` is for the threads of
 * `runLocal`, which start this module too.
 *
 * @module
 */

import { initProcessGroup, type ProcessGroup } from "@graft/ml/dist";
import { checkGroup } from "./cases.ts";

/** Ways to die, and how they look to the others. */
const ends: Record<string, () => void> = {
  kill: () => Deno.kill(Deno.pid, "SIGKILL"),
  stop: () => Deno.kill(Deno.pid, "SIGSTOP"),
  exit: () => Deno.exit(0),
  throw: () => {
    throw new Error("rank 1 of the test is broken");
  },
  spin: () => {
    while (true);
  },
};

/** 16 MB: a collective that takes a while. */
const large = () => new Float32Array(2 ** 22);

/** Ends rank `who` in the way `end` at a moment of a job; the others go on. */
async function fault(end: string, moment: string, who: string): Promise<void> {
  const now = (at: string, group?: ProcessGroup) => {
    if (at === moment && (group === undefined || group.rank === Number(who))) ends[end]();
  };
  // Before there is a group the launcher's number is the rank.
  const number = Deno.env.get("OMPI_COMM_WORLD_RANK") ?? Deno.env.get("PMI_RANK");
  if (number === who) now("start");
  const group = await initProcessGroup();
  for (let step = 0; step < 3; step++) {
    if (step === 1) now("between", group); // the others wait for it in a collective
    const reduced = group.allReduce(large(), { label: `bucket ${step}: lm_head.weight` });
    if (step === 1) now("within", group); // its thread is in the collective
    await reduced;
  }
  now("end", group);
  await group.close();
}

/** Ranks that do not call the same; each leaves what it hears in a file. */
async function differ(how: string, folder: string): Promise<void> {
  const group = await initProcessGroup();
  const { rank, size } = group;
  await group.barrier();
  try {
    if (how === "kind" && rank === 1) await group.barrier();
    if (how === "length" && rank === 1) await group.allReduce(new Float32Array(7), { label: "b" });
    if (how === "label" && rank === 1) await group.allReduce(new Float32Array(8), { label: "c" });
    if (how === "steps" && rank === 1) return await group.close();
    await group.allReduce(new Float32Array(8), { label: "b" });
  } catch (error) {
    await Deno.writeTextFile(`${folder}/${how}.${rank}`, (error as Error).message);
    // The first rank that ends takes the others with it: it waits until all have heard.
    for (let other = 0; other < size; other++) {
      while (!await Deno.stat(`${folder}/${how}.${other}`).catch(() => null));
    }
    throw error;
  }
  await group.close();
}

/**
 * Ten steps of something that depends on every rank and on every step before, with a checkpoint after
 * each; the process of rank `who` is killed in step 4, the first time.
 */
async function train(file: string, who: string): Promise<void> {
  const group = await initProcessGroup();
  const state = new Float64Array(3).fill(1); // step, and two weights
  if (group.rank === 0) {
    const saved = await Deno.readFile(file).catch(() => null);
    if (saved !== null) state.set(new Float64Array(saved.buffer));
  }
  await group.broadcast(state, { label: "checkpoint" });
  while (state[0] < 10) {
    if (state[0] === 4 && group.rank === Number(who) && Deno.env.get("GRAFT_RESTART") === "0") {
      ends.kill();
    }
    const gradient = Float64Array.from(state.subarray(1), (w) => Math.sin(w * (group.rank + 2)));
    await group.allReduce(gradient, { label: "gradients" });
    state[1] += gradient[0] / 3;
    state[2] -= gradient[1] / 7;
    state[0]++;
    if (group.rank === 0) {
      await Deno.writeFile(`${file}.part`, new Uint8Array(state.buffer));
      await Deno.rename(`${file}.part`, file);
    }
  }
  await group.close();
}

/** Runs the checks, and writes what they gave to a file of this rank's. */
async function check(folder: string): Promise<string> {
  const group = await initProcessGroup();
  const digest = await checkGroup(group);
  const { backend, rank, size, localRank, localSize } = group;
  const report = { backend, rank, size, localRank, localSize, digest };
  await Deno.writeTextFile(`${folder}/${rank}.json`, JSON.stringify(report));
  await group.close();
  return digest;
}

/** Reduces for good, until it is stopped. */
async function forever(): Promise<void> {
  const group = await initProcessGroup();
  for (let step = 0;; step++) {
    await group.allReduce(new Float32Array(1000), { label: "bucket 0: lm_head.weight" });
    if (step === 10 && group.rank === 0) console.log("going");
  }
}

/** Rank 0 computes while the others meet it; its limit passes meanwhile. */
async function busy(): Promise<void> {
  const group = await initProcessGroup();
  await group.barrier();
  const met = group.barrier({ timeout: group.rank === 0 ? 20 : 60_000 });
  const until = performance.now() + 500;
  while (group.rank === 0 && performance.now() < until);
  await met;
  await group.close();
}

/** Ends without a word. */
async function leave(): Promise<void> {
  await (await initProcessGroup()).barrier();
}

const works: Record<string, (...args: string[]) => Promise<unknown>> = {
  busy,
  check,
  differ,
  fault,
  forever,
  leave,
  train,
};

/** Does what the first word says. */
export async function main(...args: string[]): Promise<unknown> {
  return await works[args[0]](...args.slice(1));
}

if (import.meta.main) await main(...Deno.args);

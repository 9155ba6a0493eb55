/**
 * All-reduce through Deno beside a C program under the same launcher, in turns, and among threads.
 *
 * `deno run -A bench/allreduce.ts [--launcher "mpiexec.mpich -n"] [--compiler mpicc.mpich] [--ranks 2]
 * [--rounds 5]`
 */

import { parseArgs } from "@std/cli/parse-args";
import { runLocal } from "@graft/ml/dist";
import { machine, median, table } from "./report.ts";

const here = new URL("./allreduce/", import.meta.url);
const sizes = [
  { name: "4 KB", bytes: 4096, repeats: 200, samples: 5 },
  { name: "64 MB", bytes: 2 ** 26, repeats: 3, samples: 3 },
];

/** What a job prints, as numbers. */
async function numbers(words: readonly string[]): Promise<number[]> {
  const [program, ...args] = words;
  const { success, stdout, stderr } = await new Deno.Command(program, { args }).output();
  const decoder = new TextDecoder();
  if (!success) throw new Error(`${words.join(" ")}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout).trim().split("\n").map(Number);
}

const flags = parseArgs(Deno.args, { string: ["launcher", "compiler", "ranks", "rounds"] });
const launcher = (flags.launcher ?? "mpiexec.mpich -n").split(" ");
const ranks = Number(flags.ranks ?? 2);
const rounds = Number(flags.rounds ?? 5);

const program = await Deno.makeTempFile();
const source = new URL("allreduce.c", here).pathname;
const compiler = new Deno.Command(flags.compiler ?? "mpicc.mpich", {
  args: ["-O2", "-o", program, source],
});
const built = await compiler.output();
if (!built.success) throw new Error(new TextDecoder().decode(built.stderr));

const deno = [Deno.execPath(), "run", "-A", "--no-check", new URL("rank.ts", here).pathname];
const start = [...launcher, String(ranks)];
const rows: string[][] = [];
for (const { name, bytes, repeats, samples } of sizes) {
  const work = [bytes, repeats, samples];
  const [ours, theirs, threads]: number[][] = [[], [], []];
  for (let round = 0; round < rounds; round++) {
    theirs.push(...await numbers([...start, program, ...work.map(String)]));
    ours.push(...await numbers([...start, ...deno, ...work.map(String)]));
    const local = await runLocal(new URL("rank.ts", here), { size: ranks, args: work });
    threads.push(...(local[0] as number[]));
  }
  const micro = (values: number[]) => (median(values) * 1e6).toFixed(1);
  const ratio = (median(ours) / median(theirs)).toFixed(2);
  rows.push([name, micro(theirs), micro(ours), ratio, micro(threads)]);
}
await Deno.remove(program);
console.log(await machine());
console.log(`${start.join(" ")}, medians of ${rounds} rounds in turns, µs an all-reduce of f32\n`);
console.log(table(["size", "C", "graft", "graft / C", "threads of one process"], rows));

/**
 * One training step of a small GPT, in graft on the CPU and in jax-js on its wasm backend, side by side
 * in one run: same weights, same batches, and the losses have to agree.
 *
 *     deno run -A bench/step_small_gpt.ts [--steps 20] [--warmup 5] [--method full|lora|both]
 *
 * Each side has a process of its own, since both fill the cores with workers, and the two take turns
 * step by step: what else happens on the machine strikes both. A side that waits sleeps.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { machine, median, table } from "./report.ts";
import type { Opened, Taken } from "./small_gpt/child.ts";
import { lines } from "./small_gpt/lines.ts";
import { type Method, SPEC } from "./small_gpt/spec.ts";

/** How far losses may be apart, relative, over the first steps. */
const TOLERANCE = 1e-3;
const COMPARED = 5;

/** A side's process. */
class Runner {
  readonly #process: Deno.ChildProcess;
  readonly #in: WritableStreamDefaultWriter<Uint8Array>;
  readonly #out: AsyncGenerator<string>;
  readonly steps: Taken[] = [];
  opened: Opened | null = null;

  constructor(readonly side: string, method: Method) {
    const child = new URL("./small_gpt/child.ts", import.meta.url).href;
    this.#process = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", child, side, method],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    this.#in = this.#process.stdin.getWriter();
    this.#out = lines(this.#process.stdout);
  }

  async #hear<T>(): Promise<T> {
    const { done, value } = await this.#out.next();
    if (done) throw new Error(`the process of ${this.side} ended; its message is above`);
    return JSON.parse(value) as T;
  }

  async open(): Promise<void> {
    this.opened = await this.#hear<Opened>();
  }

  async step(index: number): Promise<void> {
    await this.#in.write(new TextEncoder().encode(`${index}\n`));
    this.steps.push(await this.#hear<Taken>());
  }

  async close(): Promise<void> {
    await this.#in.close();
    await this.#process.status;
  }
}

async function compare(method: Method, warmup: number, count: number): Promise<boolean> {
  const graft = new Runner("graft", method);
  await graft.open();
  const peer = new Runner("jax-js", method);
  await peer.open();
  for (let i = 0; i < warmup + count; i++) {
    // Who goes first alternates too.
    const [a, b] = i % 2 === 0 ? [graft, peer] : [peer, graft];
    await a.step(i);
    await b.step(i);
  }
  await graft.close();
  await peer.close();

  console.log(`\n${method === "full" ? "all weights" : `LoRA, r = ${SPEC.rank}, on q, k, v`}\n`);
  let worst = 0;
  const losses = graft.steps.slice(0, Math.max(COMPARED, warmup)).map(({ loss }, i) => {
    const other = peer.steps[i].loss;
    const apart = Math.abs(loss - other) / Math.abs(other);
    if (i < COMPARED) worst = Math.max(worst, Number.isNaN(apart) ? Infinity : apart);
    return [`${i + 1}`, loss.toFixed(6), other.toFixed(6), apart.toExponential(1)];
  });
  console.log(table(["loss of step", "graft", "jax-js", "apart"], losses));
  console.log();
  const ms = (n: number): string => n.toFixed(n < 10 ? 1 : 0);
  const rows = [graft, peer].map(({ opened, steps }) => {
    const timed = steps.slice(warmup).map((s) => s.ms);
    return [
      opened!.name,
      ms(opened!.ms),
      ms(steps[0].ms),
      ms(median(timed)),
      ms(Math.min(...timed)),
      ms(Math.max(...timed)),
    ];
  });
  console.log(table(["milliseconds", "open", "first step", "step: median", "min", "max"], rows));
  const [mine, theirs] = [graft, peer].map(({ steps }) =>
    median(steps.slice(warmup).map((s) => s.ms))
  );
  console.log(
    `\n${count} steps after ${warmup} to warm up; a step of jax-js takes ` +
      `${(theirs / mine).toFixed(2)} times as long as one of graft`,
  );
  if (!(worst <= TOLERANCE)) {
    console.error(
      `the losses are ${worst.toExponential(1)} apart: they do not train the same model`,
    );
    return false;
  }
  return true;
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["steps", "warmup", "method"],
    default: { steps: "20", warmup: "5", method: "both" },
  });
  const { layers, size, sequence, batch, vocabulary, heads } = SPEC;
  console.log(await machine());
  console.log(
    `model:   ${layers} layers, d ${size}, ${heads} heads, T ${sequence}, B ${batch}, V ${vocabulary}; ` +
      `GELU (tanh), LayerNorm, tied head; AdamW`,
  );
  console.log("sides:   a process each, taking turns step by step, a thread for each core");
  let agreed = true;
  for (const method of ["full", "lora"] as const) {
    if (flags.method !== "both" && flags.method !== method) continue;
    agreed = await compare(method, Math.max(1, Number(flags.warmup)), Number(flags.steps)) &&
      agreed;
  }
  if (!agreed) Deno.exit(1);
}

/**
 * Memory in training.
 *
 *     deno run -A --v8-flags=--no-allocation-site-pretenuring bench/memory.ts [--steps 300] [--every 25]
 *
 * First, that it stays flat: LoRA training of a small Llama, resident memory and what the device has
 * made, every few steps. Then, what LoRA saves: the bytes beyond the base weights that the planner and
 * the device report for LoRA and for full fine-tuning of a Llama of stories15M's shape, same batch.
 *
 * @module
 */

import v8 from "node:v8";
import vm from "node:vm";
import { init } from "@graft/ml";
import { parseArgs } from "@std/cli/parse-args";
import { SMALL, STORIES_15M, trainer } from "./llama.ts";
import { machine, mib, table } from "./report.ts";

/** The JS heap without garbage, in MiB. */
function liveHeap(): number {
  v8.setFlagsFromString("--expose-gc");
  (vm.runInNewContext("gc") as () => void)();
  return Deno.memoryUsage().heapUsed / 2 ** 20;
}

async function flat(steps: number, every: number): Promise<boolean> {
  await init({ device: "cpu" });
  const { device, step } = await trainer(SMALL, "lora", [4, 64]);
  const rows: string[][] = [];
  let loss = 0;
  let made = "";
  const counts = (): string => {
    const { buffers, pipelines, bindings, bytes } = device.counters;
    return [buffers, pipelines, bindings, bytes].join();
  };
  for (let i = 1; i <= steps; i++) {
    loss = await step(i);
    if (i === 3) made = counts();
    if (i % every !== 0 && i !== 1 && i !== 3) continue;
    const { buffers, pipelines, bindings, bytes } = device.counters;
    rows.push([
      `${i}`,
      loss.toFixed(4),
      mib(Deno.memoryUsage().rss),
      mib(Deno.memoryUsage().heapUsed),
      mib(bytes),
      `${buffers}`,
      `${pipelines}`,
      `${bindings}`,
      `${device.flushes.built}`,
    ]);
  }
  console.log(
    `\nLoRA training of a Llama with ${SMALL.num_hidden_layers} layers, d 64: MiB, counts\n`,
  );
  console.log(table(
    ["step", "loss", "resident", "JS heap", "device", "buffers", "kernels", "bindings", "plans"],
    rows,
  ));
  const live = liveHeap();
  for (let i = 0; i < 100; i++) await step(steps + i);
  const later = liveHeap();
  console.log(
    `\nthe JS heap without garbage: ${live.toFixed(1)} MiB, and ${
      later.toFixed(1)
    } after 100 more steps`,
  );
  const moved = counts() !== made;
  await device.close();
  if (moved) {
    console.error("the device has made something since step 3");
    return false;
  }
  if (later > live + 1) {
    console.error("it grows");
    return false;
  }
  return true;
}

async function saved(): Promise<boolean> {
  // As `deno task train` has them.
  const [batch, sequence] = [4, 256];
  const beyond: number[] = [];
  const rows: string[][] = [];
  for (const method of ["full", "lora"] as const) {
    await init({ device: "cpu" });
    const { device, trained, weights, added, step } = await trainer(
      STORIES_15M,
      method,
      [batch, sequence],
    );
    let loss = 0;
    for (let i = 0; i < 3; i++) loss = await step(i);
    const parameters = trained.reduce((sum, p) => sum + 4 * p.size, 0);
    // AdamW holds two moments a parameter.
    const gradients = parameters;
    const moments = 2 * parameters;
    const temporaries = device.lastReport!.temporaryBytes;
    const sum = added + gradients + moments + temporaries;
    beyond.push(sum);
    rows.push([
      method,
      mib(weights - added),
      mib(added),
      mib(gradients),
      mib(moments),
      mib(temporaries),
      mib(sum),
      mib(device.counters.bytes),
      mib(device.counters.peakBytes),
      loss.toFixed(3),
    ]);
    await device.close();
  }
  console.log(`\na Llama of stories15M's shape, B ${batch}, T ${sequence}, AdamW: MiB\n`);
  console.log(table(
    [
      "trained",
      "base weights",
      "adapter",
      "gradients",
      "moments",
      "temporaries",
      "beyond the base",
      "device",
      "device peak",
      "loss",
    ],
    rows,
  ));
  const share = beyond[1] / beyond[0];
  console.log(
    `\nLoRA holds ${(100 * share).toFixed(1)} % of what full fine-tuning holds beyond the base`,
  );
  if (share > 1 / 3) {
    console.error("that is more than a third");
    return false;
  }
  return true;
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["steps", "every"],
    default: { steps: "300", every: "25" },
  });
  console.log(await machine());
  const fine = await flat(Number(flags.steps), Number(flags.every));
  if (!await saved() || !fine) Deno.exit(1);
}

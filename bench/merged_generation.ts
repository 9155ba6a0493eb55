/**
 * What an adapter costs in generation: stories15M with a LoRA merged into its weights, and with one beside
 * them, against the base.
 *
 *     deno run -A bench/merged_generation.ts [--rounds 150] [--tokens 16] [--device cpu|webgpu]
 *
 * In each round every model generates the same number of tokens, one after the other and then in the
 * reverse order, so that a machine that slows down or speeds up does so for all. A round gives each model
 * one ratio to the base; the table has the median over the rounds with the interval that holds the true
 * median with 95 % certainty, whatever the distribution. A second copy of the base shows what the method
 * makes of two models that are equal.
 *
 * The command fails where the merged model is slower or faster than the base by more than 2 % beyond
 * doubt.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import { type DeviceName, init, manualSeed, normal } from "@graft/ml";
import { loadStories15M } from "@graft/ml/data";
import { generate, LlamaForCausalLM } from "@graft/ml/nn";
import { inject, mergeAndUnload } from "@graft/ml/peft";
import { machine, median, table } from "./report.ts";

/** "Once upon a time" */
const PROMPT = [1, 9038, 2501, 263, 931];

/** Generates `tokens` tokens, whatever they are; gives the milliseconds it took. */
async function time(model: LlamaForCausalLM, tokens: number): Promise<number> {
  const started = performance.now();
  let count = 0;
  const options = { maxTokens: tokens, temperature: 0, stopTokens: [] };
  for await (const _ of generate(model, PROMPT, options)) count++;
  if (count !== tokens) throw new Error(`generated ${count} tokens, not ${tokens}`);
  return performance.now() - started;
}

/** stories15M with a LoRA on every linear layer that does something. */
async function adapted(folder: string): Promise<LlamaForCausalLM> {
  const model = await LlamaForCausalLM.fromPretrained(folder);
  inject(model, { r: 8, lora_alpha: 16, target_modules: "all-linear" });
  for (const parameter of model.trainable()) {
    parameter.assign(normal(parameter.shape, { std: 0.02 }));
  }
  return model;
}

/** The interval between two of the sorted values that holds their median with 95 % certainty. */
function interval(values: readonly number[]): [number, number] {
  const sorted = values.toSorted((a, b) => a - b);
  const n = sorted.length;
  // Ranks by the normal approximation of the binomial distribution.
  const low = Math.max(0, Math.floor(n / 2 - 0.98 * Math.sqrt(n)) - 1);
  return [sorted[low], sorted[n - 1 - low]];
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["rounds", "tokens", "device"],
    default: { rounds: "150", tokens: "16", device: "cpu" },
  });
  const rounds = Number(flags.rounds), tokens = Number(flags.tokens);
  const device = await init({ device: flags.device as DeviceName });
  const folder = await loadStories15M();
  manualSeed(0);
  const models = {
    "base": await LlamaForCausalLM.fromPretrained(folder),
    "merged": await mergeAndUnload(await adapted(folder)),
    "base again": await LlamaForCausalLM.fromPretrained(folder),
    "not merged": await adapted(folder),
  };
  const names = Object.keys(models) as (keyof typeof models)[];
  for (const name of [...names, ...names]) await time(models[name], tokens); // compiles

  const ratios = new Map(names.map((name) => [name, [] as number[]]));
  const each: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const took = new Map(names.map((name) => [name, 0]));
    // Who begins differs from round to round.
    const order = names.map((_, i) => names[(i + round) % names.length]);
    for (const name of [...order, ...order.toReversed()]) {
      took.set(name, took.get(name)! + await time(models[name], tokens));
    }
    for (const name of names) ratios.get(name)!.push(took.get(name)! / took.get("base")!);
    each.push(took.get("base")! / (2 * tokens));
  }
  await device.close();

  console.log(await machine());
  console.log(
    `\nstories15M, LoRA r 8 on every linear layer; ${rounds} rounds of ${tokens} tokens twice; ` +
      `base: ${median(each).toFixed(2)} ms a token, the prompt's pass within\n`,
  );
  console.log(table(
    ["model", "time to the base's", "95 % interval"],
    names.slice(1).map((name) => {
      const [low, high] = interval(ratios.get(name)!);
      return [
        name,
        median(ratios.get(name)!).toFixed(3),
        `${low.toFixed(3)} to ${high.toFixed(3)}`,
      ];
    }),
  ));
  const [low, high] = interval(ratios.get("merged")!);
  const reached = low >= 0.98 && high <= 1.02, missed = high < 0.98 || low > 1.02;
  console.log(
    `\nmerged generates at the base's speed, 1.00 ± 0.02: ` +
      (reached ? "yes" : missed ? "no" : "these rounds do not tell; take more (--rounds)"),
  );
  if (missed) Deno.exit(1);
}

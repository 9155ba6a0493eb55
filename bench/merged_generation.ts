/**
 * What a LoRA costs in generation: stories15M with one merged into its weights, and with one beside them,
 * against two copies of the base.
 *
 *     deno run -A bench/merged_generation.ts [--makes 60] [--rounds 2] [--tokens 32] [--device cpu|webgpu]
 *
 * Two models that are equal differ by several percent, and largely go on doing so round after round,
 * likely by where their weights came to lie. More rounds do not take that away. So the models are made anew
 * many times, in an order drawn each time, and a make counts as one observation. In it the models generate
 * side by side, a token of each in turn in an order drawn for each, so that a machine that slows down or
 * speeds up does so for all; a model's time is the median of its tokens. The table has the mean ratio over
 * the makes, and how sure it is. The ratio of the copies to each other, which is 1 in truth, shows what the
 * method resolves.
 *
 * The command fails where the merged model is slower than its goal beyond doubt, and says so where the
 * interval, or that of the copies, reaches across the bounds.
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

type Name = "base" | "copy" | "merged" | "beside";

/**
 * All models generate `tokens` tokens, whatever they are, one of each in turn; gives the milliseconds that
 * each token but the first took, whose pass is the prompt's.
 */
async function generated(
  models: ReadonlyMap<Name, LlamaForCausalLM>,
  tokens: number,
): Promise<Map<Name, number[]>> {
  const options = { maxTokens: tokens + 1, temperature: 0, stopTokens: [] };
  const runs = [...models].map(([name, model]) => ({
    name,
    tokens: generate(model, PROMPT, options),
    took: [] as number[],
  }));
  for (let i = 0; i <= tokens; i++) {
    for (const run of shuffled(runs)) {
      const started = performance.now();
      const { done } = await run.tokens.next();
      if (done) throw new Error(`${run.name} generated ${i} tokens, not ${tokens + 1}`);
      if (i > 0) run.took.push(performance.now() - started);
    }
  }
  for (const run of runs) await run.tokens.return();
  return new Map(runs.map(({ name, took }) => [name, took]));
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

/** The geometric mean of ratios, and the interval that holds the true one with 95 % certainty. */
function meanOf(ratios: readonly number[]): { mean: number; low: number; high: number } {
  const n = ratios.length, logs = ratios.map(Math.log);
  const mean = logs.reduce((sum, x) => sum + x, 0) / n;
  const variance = logs.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (n - 1);
  // Student's quantile, by its expansion about the normal distribution's.
  const reach = (1.96 + 2.37 / (n - 1)) * Math.sqrt(variance / n);
  return { mean: Math.exp(mean), low: Math.exp(mean - reach), high: Math.exp(mean + reach) };
}

/** The same values in an order that is drawn. */
function shuffled<T>(values: readonly T[]): T[] {
  const left = [...values];
  return values.map(() => left.splice(Math.floor(Math.random() * left.length), 1)[0]);
}

/** How the models are made. */
const MAKERS: Readonly<Record<Name, (folder: string) => Promise<LlamaForCausalLM>>> = {
  base: (folder) => LlamaForCausalLM.fromPretrained(folder),
  copy: (folder) => LlamaForCausalLM.fromPretrained(folder),
  merged: async (folder) => await mergeAndUnload(await adapted(folder)),
  beside: adapted,
};

const NAMES = Object.keys(MAKERS) as Name[];

/** What one make showed. */
interface Make {
  /** Milliseconds a token of the two copies, in the mean. */
  readonly took: number;
  /** Ratios to the copies' mean, and of the copies to each other. */
  readonly merged: number;
  readonly beside: number | null;
  readonly copy: number;
}

async function make(
  folder: string,
  names: readonly Name[],
  rounds: number,
  tokens: number,
): Promise<Make> {
  const models = new Map<Name, LlamaForCausalLM>();
  for (const name of shuffled(names)) {
    models.set(name, await MAKERS[name](folder));
  }
  await generated(models, tokens); // compiles, plans
  const all = new Map([...models.keys()].map((name) => [name, [] as number[]]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, took] of await generated(models, tokens)) all.get(name)!.push(...took);
  }
  for (const model of models.values()) model.parameters().forEach((p) => p.dispose());
  const of = (name: Name): number => median(all.get(name)!);
  const took = (of("base") + of("copy")) / 2;
  return {
    took,
    merged: of("merged") / took,
    beside: models.has("beside") ? of("beside") / took : null,
    copy: of("copy") / of("base"),
  };
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["makes", "rounds", "tokens", "device"],
    default: { makes: "60", rounds: "2", tokens: "32", device: "cpu" },
  });
  const count = Number(flags.makes), rounds = Number(flags.rounds), tokens = Number(flags.tokens);
  if (!(count >= 12)) {
    throw new RangeError(`--makes needs at least 12 to tell how they vary, got ${flags.makes}`);
  }
  const device = await init({ device: flags.device as DeviceName });
  const folder = await loadStories15M();
  manualSeed(0);
  const makes: Make[] = [];
  for (let i = 0; i < count; i++) {
    // The goal is about the other three; they get most of the time.
    const names = NAMES.filter((name) => name !== "beside" || i % 4 === 0);
    makes.push(await make(folder, names, rounds, tokens));
  }
  await device.close();

  console.log(await machine());
  const took = median(makes.map(({ took }) => took));
  console.log(
    `\nstories15M, LoRA r 8 on every linear layer; ${count} makes of ${rounds} rounds of ${tokens} ` +
      `tokens; base: ${took.toFixed(2)} ms a token\n`,
  );
  const row = (what: string, ratios: readonly number[]): string[] => {
    const { mean, low, high } = meanOf(ratios);
    const [m, l, h, least, most] = [mean, low, high, Math.min(...ratios), Math.max(...ratios)]
      .map((x) => x.toFixed(3));
    return [what, m, `${l} to ${h}`, `${least} to ${most}`];
  };
  const merged = makes.map(({ merged }) => merged), copies = makes.map(({ copy }) => copy);
  console.log(table(["time of", "ratio", "95 % interval", "single makes"], [
    row("merged to the base's copies", merged),
    row("one copy of the base to the other", copies),
    row("LoRA beside to the base's copies", makes.flatMap(({ beside }) => beside ?? [])),
  ]));
  const { low, high } = meanOf(merged), between = meanOf(copies);
  const isSlower = low > 1.02, isFaster = high < 0.98;
  const isEqual = Math.min(low, between.low) >= 0.98 && Math.max(high, between.high) <= 1.02;
  console.log(
    "\nmerged generates at the base's speed, 1.00 ± 0.02: " +
      (isSlower
        ? "no, it is slower"
        : isFaster
        ? "no, it is faster"
        : isEqual
        ? "yes"
        : "these rounds do not tell; take more (--makes)"),
  );
  if (isSlower) Deno.exit(1);
}

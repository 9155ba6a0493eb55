/**
 * The methods: how each is put on a model, and what it leaves.
 *
 * @module
 */

import { manualSeed } from "@graft/ml";
import { copyTokenizer } from "@graft/ml/data";
import type { CausalLM } from "@graft/ml/nn";
import { findTargets, inject, injectPrompt, resolveLoraConfig, saveAdapter } from "@graft/ml/peft";
import type { Base } from "./base.ts";
import { type Settings, UsageError } from "./settings.ts";

/** Whether a method puts virtual tokens before the text. */
function isPrompt({ method }: Settings): boolean {
  return method === "prompt" || method === "ptuning-v2";
}

/**
 * Tokens in a window: what is asked for, or as many as the model has positions for, up to 256.
 *
 * Throws a `UsageError` where the model has too few.
 */
export function windowLength(settings: Settings, { model }: Base): number {
  const virtual = isPrompt(settings) ? settings.virtualTokens : 0;
  const positions = model.config.max_position_embeddings, most = positions - virtual;
  const seq = settings.seq ?? Math.min(256, most);
  if (seq > most || most < 2) {
    throw new UsageError(
      (most < 2
        ? "too few positions are left for a text"
        : `--seq must be from 2 to ${most}, got ${seq}`) +
        `: ${settings.model} has ${positions}` +
        (virtual > 0 ? `, of which --virtual-tokens takes ${virtual}` : ""),
    );
  }
  return seq;
}

/** Makes what the method trains the only thing that is. Prompts start from the tokens `start`. */
export async function adapt(
  { model, tokenizer }: Base,
  settings: Settings,
  start: readonly number[],
): Promise<void> {
  const { method, seed, virtualTokens } = settings;
  const named = { base_model_name_or_path: settings.model, task_type: "CAUSAL_LM" };
  const tokens = start.slice(0, virtualTokens);
  manualSeed(seed);
  switch (method) {
    case "full":
      model.unfreeze();
      break;
    case "lora":
    case "dora":
      inject(model, {
        ...named,
        r: settings.rank,
        lora_alpha: settings.alpha,
        target_modules: targetsOf(model, settings.target),
        use_dora: method === "dora",
      });
      break;
    case "prompt":
      await injectPrompt(model, {
        ...named,
        peft_type: "PROMPT_TUNING",
        num_virtual_tokens: virtualTokens,
        prompt_tuning_init: "TEXT",
        prompt_tuning_init_text: tokenizer.decode(tokens),
      }, { tokens });
      break;
    case "ptuning-v2":
      // From the keys and values of the text.
      await injectPrompt(model, {
        ...named,
        peft_type: "PREFIX_TUNING",
        num_virtual_tokens: virtualTokens,
      }, { tokens });
  }
}

/** The layers that `--target` names, as PEFT's files have them. */
function targetsOf(model: CausalLM, target: string): string | string[] {
  // Anything but names is a regular expression.
  if (!/^[\w.,-]+$/.test(target) || target === "all-linear") return target;
  const linear = findTargets(model, resolveLoraConfig({ target_modules: "all-linear" }));
  const names = target.split(",").flatMap((name) => {
    if (name === "all-linear") return linear.map(({ path }) => path.replace(/^.*\./, ""));
    findTargets(model, resolveLoraConfig({ target_modules: [name] })); // throws where there is none
    return name;
  });
  return [...new Set(names)];
}

/** Writes what is trained: an adapter in PEFT's files, or the whole model with its tokenizer. */
export async function saveResult(
  { model, folder }: Base,
  { method, out }: Settings,
): Promise<void> {
  if (method !== "full") return await saveAdapter(model, out);
  await model.savePretrained(out);
  await copyTokenizer(folder, out);
}

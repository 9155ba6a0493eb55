/**
 * LoRA: low-rank adaptation (Hu et al. 2021), `h = W x + scale · B A x`. How adapters are put beside the
 * layers of a model.
 *
 * @module
 */

import { Conv1D, type Module, replaceModule } from "../nn/mod.ts";
import { type LoraConfig, type ResolvedLoraConfig, resolveLoraConfig } from "./config.ts";
import { adaptedLayer, isLoraLayer, LoraEmbedding, type LoraLayer, sizesOf } from "./layers.ts";
import { giveModules, giveOwn, moveOwn, ownOf, parameterFields, takeOwn } from "./own.ts";
import { LoraAdapter, LoraEmbeddingAdapter } from "./pair.ts";
import { promptsOf, removePrompts } from "./prompt/holder.ts";
import { adapterNames, adapterParameters, checkNewName, setActive } from "./switch.ts";
import { baseModules, findSaved, findTargets, type Target } from "./target.ts";

/** Options of {@linkcode inject} and {@linkcode addAdapter}. */
export interface InjectOptions {
  /** The adapter's name. Default "default". */
  readonly name?: string;
  /** Whether the adapter is trained. Default true. */
  readonly trainable?: boolean;
  /** Told of unknown keys in the configuration. Default `console.warn`. */
  readonly warn?: (message: string) => void;
}

/**
 * Adds a LoRA adapter to the layers that `config` names, freezes everything else, and makes the adapter
 * the active one. Fresh adapters draw from the default generator: see `manualSeed`.
 *
 * Throws an `Error` where the configuration names no layer or something that is not built, or the
 * adapter's name is taken; then the model is as it was.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { countParameters, inject } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * inject(model, { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj"] });
 * console.log(countParameters(model)); // { trainable: 256, total: ... }
 * ```
 */
export function inject<M extends Module>(
  model: M,
  config: LoraConfig,
  options: InjectOptions = {},
): M {
  const { name = "default", trainable = true } = options;
  addAdapter(model, config, { ...options, name, trainable: false });
  model.freeze();
  for (const p of adapterParameters(model, name)) p.requiresGrad = trainable;
  setActive(model, name);
  return model;
}

/**
 * As {@linkcode inject}, but what is active and what is trained besides stays as it is.
 *
 * Throws as `inject` does.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { adapterStatus, addAdapter, inject, setActive } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * inject(model, { r: 4 }, { name: "poems" });
 * addAdapter(model, { r: 8, use_dora: true }, { name: "letters" });
 * setActive(model, "letters");
 * console.log(adapterStatus(model).attached); // ["poems", "letters"]
 * ```
 */
export function addAdapter<M extends Module>(
  model: M,
  config: LoraConfig,
  options: InjectOptions = {},
): M {
  const { name = "default", trainable = true } = options;
  const resolved = resolveLoraConfig(withHeads(model, config), "LoraConfig", options.warn);
  const { init_lora_weights: init } = resolved;
  if (typeof init === "string" && init !== "gaussian") {
    throw new Error(
      `LoRA: init_lora_weights "${init}" computes on the host: call await injectFromBase()`,
    );
  }
  attach(model, findTargets(model, resolved), resolved, name);
  for (const p of adapterParameters(model, name)) p.requiresGrad = trainable;
  return model;
}

/** Classifiers are trained with their head, beside what else is named, as PEFT does it. */
export function withHeads<
  C extends {
    readonly task_type?: string | null;
    readonly modules_to_save?: readonly string[] | null;
  },
>(model: Module, config: C): C {
  const { task_type, modules_to_save } = config;
  if (task_type !== "SEQ_CLS" && task_type !== "TOKEN_CLS") return config;
  const heads = ["classifier", "score"];
  if (!heads.some((head) => head in model)) return config;
  const given = modules_to_save ?? [];
  return {
    ...config,
    modules_to_save: [...given, ...heads.filter((head) => !given.includes(head))],
  };
}

/**
 * Puts adapters beside `targets`, and copies of what else the adapter trains; trains and activates
 * nothing. Throws an `Error`, and changes nothing, where the name cannot be.
 */
export function attach(
  model: Module,
  targets: readonly Target[],
  config: ResolvedLoraConfig,
  name: string,
): void {
  checkNewName(model, name);
  const saved = findSaved(model, config);
  // What files say of layers is what the layers are.
  const fanned = targets.some(({ layer }) => layer instanceof Conv1D);
  const known = { ...config, fan_in_fan_out: fanned || config.fan_in_fan_out };
  for (const target of targets) {
    const { path, layer } = target;
    const adapted = adaptedLayer(layer);
    const sizes = { ...sizesOf(layer), ...target };
    const pair = adapted instanceof LoraEmbedding
      ? new LoraEmbeddingAdapter(sizes, known)
      : new LoraAdapter(sizes, known);
    pair.savesBase = /(^|\.)(embed_tokens|lm_head)$/.test(path); // as PEFT's files do
    pair.startMagnitude(adapted);
    pair.train(layer.training);
    (adapted.adapters as Map<string, typeof pair>).set(name, pair);
    if (adapted !== layer) {
      moveOwn(layer, adapted);
      replaceModule(model, path, adapted);
    }
  }
  giveModules(saved, name);
  if (config.bias === "none") return;
  for (const [path, module] of baseModules(model)) {
    const inSaved = saved.some(([s]) => `${path}.`.startsWith(`${s}.`));
    const wanted = config.bias === "all" ||
      (isLoraLayer(module) && module.adapters.has(name));
    if (wanted && !inSaved && parameterFields(module).includes("bias")) {
      giveOwn(module, name, ["bias"]);
    }
  }
}

/**
 * Takes one adapter away. What is active besides, and what is trained, stays; layers without adapters
 * are plain again.
 *
 * Throws an `Error` where there is none of that name.
 */
export function deleteAdapter<M extends Module>(model: M, name: string): M {
  const names = adapterNames(model);
  if (!names.includes(name)) {
    throw new Error(`deleteAdapter: no adapter "${name}"; there is ${names.join(", ") || "none"}`);
  }
  const prompts = promptsOf(model);
  if (prompts?.adapters.delete(name)) {
    prompts.active = prompts.active.filter((other) => other !== name);
    if (prompts.adapters.size === 0) removePrompts(model);
  }
  for (const [path, module] of baseModules(model)) {
    if (ownOf(module)?.adapters.has(name)) takeOwn(module, name);
    if (!isLoraLayer(module) || !module.adapters.has(name)) continue;
    module.adapters.delete(name);
    module.active = module.active.filter((other) => other !== name);
    if (module.merged?.names.includes(name)) module.merged = null;
    if (module.adapters.size === 0) takePlace(model, path, module, module.plain());
  }
  return model;
}

/** Puts `plain` where the adapted layer stood. */
export function takePlace(model: Module, path: string, layer: LoraLayer, plain: Module): void {
  moveOwn(layer, plain);
  replaceModule(model, path, plain);
}

/** Takes all adapters away; the base is as it was. */
export function unload<M extends Module>(model: M): M {
  for (const name of adapterNames(model)) deleteAdapter(model, name);
  return model;
}

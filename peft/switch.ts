/**
 * Which adapters there are, which take part and which are trained: three sets that do not depend on each
 * other.
 *
 * @module
 */

import type { Module, Parameter } from "../nn/mod.ts";
import { type Adapted, isLoraLayer, type LoraLayer } from "./layers.ts";
import { Own } from "./own.ts";
import { PromptAdapters } from "./prompt/holder.ts";
import { BASE } from "./rows.ts";

/** The layers of a model that have LoRA adapters, by path. */
export function loraLayers(model: Module): Map<string, LoraLayer> {
  const layers = new Map<string, LoraLayer>();
  for (const [path, module] of model.namedModules()) {
    if (isLoraLayer(module)) layers.set(path, module);
  }
  return layers;
}

/** What holds adapters by name and has some of them active: layers, own copies, soft prompts. */
export type AdapterHolder = Pick<Adapted, "adapters" | "active">;

/** Everything in a model that an adapter has a part of. */
export function adapterHolders(model: Module): AdapterHolder[] {
  return model.modules().filter(isHolder);
}

function isHolder(module: Module): module is LoraLayer | Own | PromptAdapters {
  return isLoraLayer(module) || module instanceof Own || module instanceof PromptAdapters;
}

/** The holders of adapters that rows of a batch can differ in. */
function adaptedParts(model: Module): Adapted[] {
  return model.modules().filter((module) => isLoraLayer(module) || module instanceof Own);
}

/** Names of the attached adapters. */
export function adapterNames(model: Module): string[] {
  return [...new Set(adapterHolders(model).flatMap((holder) => [...holder.adapters.keys()]))];
}

/** The parameters of one adapter, its copies of modules and biases among them. */
export function adapterParameters(model: Module, name: string): Parameter[] {
  return adapterHolders(model).flatMap((holder) => holder.adapters.get(name)?.parameters() ?? []);
}

/** Throws where an adapter cannot have that name, or another has it. */
export function checkNewName(model: Module, name: string): void {
  if (!/^[A-Za-z0-9_-]+$/.test(name) || name === BASE) {
    throw new RangeError(
      `peft: an adapter's name is of letters, digits, _ and -, and not "${BASE}", got "${name}"`,
    );
  }
  if (adapterNames(model).includes(name)) {
    throw new Error(`peft: there is an adapter "${name}" already`);
  }
}

function checkNames(what: string, model: Module, names: readonly string[]): void {
  const attached = adapterNames(model);
  for (const name of names) {
    if (!attached.includes(name)) {
      throw new Error(`${what}: no adapter "${name}"; there is ${attached.join(", ") || "none"}`);
    }
  }
}

/**
 * Makes the named adapters the active ones, in this order; none switches all off. What is trained stays.
 *
 * Throws an `Error` where there is no adapter of a name, or two of them are soft prompts or have their
 * own copy of the same module or bias, of which only one can take part.
 */
export function setActive(model: Module, ...names: string[]): void {
  checkNames("setActive", model, names);
  const holders = adapterHolders(model);
  const here = (holder: AdapterHolder): string[] => names.filter((n) => holder.adapters.has(n));
  for (const holder of holders) {
    if (here(holder).length < 2 || isLoraLayer(holder as unknown as Module)) continue;
    throw new Error(
      `setActive: one of ${here(holder).join(" and ")} can be active at a time: ` +
        (holder instanceof PromptAdapters
          ? "one soft prompt can stand before the input"
          : "each has its own copy of the same module or bias (modules_to_save, bias)"),
    );
  }
  for (const holder of holders) holder.active = here(holder);
}

/**
 * Makes the named adapters the trained ones, and no other adapter. What is active, and what of the base
 * is trained, stays.
 *
 * Throws an `Error` where there is no adapter of a name.
 */
export function setTrainable(model: Module, ...names: string[]): void {
  checkNames("setTrainable", model, names);
  for (const name of adapterNames(model)) {
    for (const p of adapterParameters(model, name)) p.requiresGrad = names.includes(name);
  }
}

/** What {@linkcode adapterStatus} tells. */
export interface AdapterStatus {
  /** All adapters. */
  readonly attached: readonly string[];
  /** Those that take part. */
  readonly active: readonly string[];
  /** Those of which a parameter is trained. */
  readonly trainable: readonly string[];
  /** Those that are merged into weights. */
  readonly merged: readonly string[];
}

/** The adapters of a model and how they stand. */
export function adapterStatus(model: Module): AdapterStatus {
  const holders = adapterHolders(model);
  const attached = adapterNames(model);
  return {
    attached,
    active: [...new Set(holders.flatMap((holder) => holder.active))],
    trainable: attached.filter((name) =>
      adapterParameters(model, name).some((p) => p.requiresGrad)
    ),
    merged: [
      ...new Set([...loraLayers(model).values()].flatMap((layer) => layer.merged?.names ?? [])),
    ],
  };
}

/** What {@linkcode layerStatus} tells of one layer. */
export interface LayerStatus extends AdapterStatus {
  /** Its path in the model; "prompt" is what stands before the input. */
  readonly path: string;
  /** Such as "LoraLinear", or "Own" for copies of a module's parameters. */
  readonly kind: string;
}

/**
 * The same for each layer that an adapter has a part of, in the model's order.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { inject, layerStatus } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * const [first] = layerStatus(inject(model, { r: 4 }));
 * console.log(first.path, first.kind, first.active); // model.layers.0.self_attn.q_proj LoraLinear ["default"]
 * ```
 */
export function layerStatus(model: Module): LayerStatus[] {
  return model.namedModules().flatMap(([path, module]) => {
    if (!isHolder(module)) return [];
    const adapters: ReadonlyMap<string, Module> = module.adapters;
    return [{
      path: module instanceof Own ? path.replace(/\.?ownParameters$/, "") : path,
      kind: module.constructor.name,
      attached: [...adapters.keys()],
      active: module.active,
      trainable: [...adapters].flatMap(([name, adapter]) =>
        adapter.parameters().some((p) => p.requiresGrad) ? [name] : []
      ),
      merged: isLoraLayer(module) ? module.merged?.names ?? [] : [],
    }];
  });
}

/**
 * Runs `fn` on the model as it is without adapters: how it compares with its base. They are back when
 * `fn`, or the promise it gives, is done, or has thrown.
 */
export function withoutAdapters<T>(model: Module, fn: () => T): T {
  return scoped(model, () => setActive(model), fn);
}

/**
 * Runs `fn` with the named adapters active. What was active is so again when `fn`, or the promise it
 * gives, is done, or has thrown.
 *
 * Throws as {@linkcode setActive} does.
 */
export function withAdapters<T>(model: Module, names: readonly string[], fn: () => T): T {
  return scoped(model, () => setActive(model, ...names), fn);
}

/**
 * Runs `fn` on batches in which row i uses the adapter `rows[i]`; "__base__" is none. Where blocks are
 * computed again in backward (`gradientCheckpointing`), call `backward()` in `fn` too.
 *
 * Throws an `Error` where there is no adapter of a name, and a `RangeError` where the batch has another
 * number of rows.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { addAdapter, withRowAdapters } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * addAdapter(model, { r: 4 }, { name: "poems" });
 * const ids = tensor([[1, 2], [1, 2]], { dtype: "i32" });
 * const y = withRowAdapters(model, ["poems", "__base__"], () => model.forward(ids));
 * console.log(y.shape); // [2, 2, 16]
 * ```
 */
export function withRowAdapters<T>(model: Module, rows: readonly string[], fn: () => T): T {
  if (rows.length === 0) {
    throw new RangeError("withRowAdapters: needs the name of each row's adapter");
  }
  checkNames("withRowAdapters", model, rows.filter((name) => name !== BASE));
  const prompts = model.modules().filter((m) => m instanceof PromptAdapters);
  const prompt = rows.find((name) => prompts.some((held) => held.adapters.has(name)));
  if (prompt !== undefined) {
    throw new TypeError(
      `withRowAdapters: "${prompt}" is a soft prompt, which rows cannot differ in`,
    );
  }
  const active = prompts.flatMap((held) => held.active);
  if (active.some((name) => adaptedParts(model).some((part) => part.adapters.has(name)))) {
    throw new TypeError(
      `withRowAdapters: the soft prompt "${
        active[0]
      }" is active and has its own copy of a module, ` +
        "which rows cannot differ in; switch it off with setActive()",
    );
  }
  return scoped(model, () => {
    for (const part of adaptedParts(model)) part.rows = [...rows];
  }, fn);
}

function scoped<T>(model: Module, enter: () => void, fn: () => T): T {
  const active = adapterHolders(model).map((holder) => [holder, holder.active] as const);
  const rows = adaptedParts(model).map((part) => [part, part.rows] as const);
  const restore = (): void => {
    for (const [holder, names] of active) holder.active = names;
    for (const [part, names] of rows) part.rows = names;
  };
  let result: T;
  try {
    enter();
    result = fn();
  } catch (error) {
    restore();
    throw error;
  }
  if (result instanceof Promise) return result.finally(restore) as T;
  restore();
  return result;
}

/** How many numbers a model has, and how many of them are trained. On `meta` too. */
export function countParameters(model: Module): { trainable: number; total: number } {
  let trainable = 0, total = 0;
  for (const parameter of model.parameters()) {
    total += parameter.size;
    if (parameter.requiresGrad) trainable += parameter.size;
  }
  return { trainable, total };
}

/** {@linkcode countParameters} as a line of text, in the form that PEFT's users know. */
export function describeParameters(model: Module): string {
  const { trainable, total } = countParameters(model);
  const share = (100 * trainable / total).toFixed(4);
  const text = (count: number): string => count.toLocaleString("en-US");
  return `trainable params: ${text(trainable)} || all params: ${
    text(total)
  } || trainable%: ${share}`;
}

/**
 * LoRA: low-rank adaptation (Hu et al. 2021), `h = W x + scale · B A x`.
 *
 * @module
 */

import { noGrad, normal, type Tensor, uniform } from "../core/mod.ts";
import { Adapter, Dropout, Linear, type Module, Parameter, replaceModule } from "../nn/mod.ts";
import { type LoraConfig, type ResolvedLoraConfig, resolveLoraConfig } from "./config.ts";
import { type PromptAdapters, promptsOf, removePrompts } from "./prompt/holder.ts";
import { findTargets, type Target } from "./target.ts";

/** The two small matrices beside one linear layer. Their names are PEFT's. */
export class LoraAdapter extends Adapter {
  /** A, from the input to the rank: [r, in] */
  lora_A: Linear;
  /** B, from the rank to the output: [out, r] */
  lora_B: Linear;
  /** Dropout of A's input. */
  dropout: Dropout;
  /** Factor of B A: α / r, or α / √r with use_rslora. */
  readonly scale: number;
  /** What the whole adapter was made from. */
  readonly config: ResolvedLoraConfig;

  /** A fresh adapter of the target, which by default changes nothing yet: B is 0. */
  constructor({ layer, r, alpha }: Target, config: ResolvedLoraConfig) {
    super();
    const { inFeatures, outFeatures } = layer;
    const init = config.init_lora_weights;
    const bound = 1 / Math.sqrt(inFeatures); // kaiming-uniform with a = √5
    const a = init === "gaussian"
      ? normal([r, inFeatures], { std: 1 / r })
      : uniform([r, inFeatures], { low: -bound, high: bound });
    this.lora_A = new Linear(inFeatures, r, { bias: false, weight: new Parameter(a) });
    this.lora_B = init === false
      ? new Linear(r, outFeatures, { bias: false })
      : Linear.zero(r, outFeatures);
    this.dropout = new Dropout(config.lora_dropout);
    this.scale = alpha / (config.use_rslora ? Math.sqrt(r) : r);
    this.config = config;
  }

  /** [..., in] -> [..., out]: what the adapter adds. */
  forward(x: Tensor): Tensor {
    // Scaled where it is small: [..., r].
    return this.lora_B.forward(this.lora_A.forward(this.dropout.forward(x)).mul(this.scale));
  }

  /** ΔW = scale · B A, [out, in]. */
  delta(): Tensor {
    return this.lora_B.weight.matmul(this.lora_A.weight).mul(this.scale);
  }
}

/**
 * A linear layer with adapters beside it. Weight and bias are those of the layer it took the place of,
 * under the same keys: checkpoints of the base load unchanged.
 */
export class LoraLinear extends Linear {
  /** Attached adapters by name. */
  readonly adapters: Map<string, LoraAdapter> = new Map();
  /** Names of those that take part, in order. */
  active: readonly string[] = [];

  /** Takes over weight and bias of `base`. */
  constructor(base: Linear) {
    super(base.inFeatures, base.outFeatures, { weight: base.weight, bias: base.bias ?? false });
    this.training = base.training;
  }

  /** [..., in] -> [..., out]: the layer's output and what the active adapters add. */
  override forward(x: Tensor): Tensor {
    let y = super.forward(x);
    for (const name of this.active) {
      const adapter = this.adapters.get(name);
      if (adapter) y = y.add(adapter.forward(x));
    }
    return y;
  }

  /**
   * A plain layer with the active adapters' ΔW in its weight. The weight is overwritten, unless `copy`,
   * as where it is also the embedding's.
   */
  merge(copy = false): Linear {
    return noGrad(() => {
      let weight: Tensor = this.weight;
      for (const name of this.active) {
        const adapter = this.adapters.get(name);
        if (adapter) weight = weight.add(adapter.delta());
      }
      const merged = weight === this.weight
        ? this.weight
        : copy
        ? new Parameter(weight, { requiresGrad: this.weight.requiresGrad })
        : this.weight.assign(weight);
      const { inFeatures, outFeatures, bias } = this;
      const layer = new Linear(inFeatures, outFeatures, { weight: merged, bias: bias ?? false });
      layer.training = this.training;
      return layer;
    });
  }
}

/** Options of {@linkcode inject}. */
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
  const resolved = resolveLoraConfig(config, "LoraConfig", options.warn);
  attach(model, findTargets(model, resolved), resolved, name);
  model.freeze();
  for (const layer of loraLayers(model).values()) {
    for (const p of layer.adapters.get(name)?.parameters() ?? []) p.requiresGrad = trainable;
  }
  setActive(model, name);
  return model;
}

/** Puts adapters beside `targets`; trains and activates nothing. */
export function attach(
  model: Module,
  targets: readonly Target[],
  config: ResolvedLoraConfig,
  name: string,
): void {
  if (!/^[A-Za-z0-9_-]+$/.test(name)) {
    throw new RangeError(`LoRA: an adapter's name is of letters, digits, _ and -, got "${name}"`);
  }
  if (adapterNames(model).includes(name)) {
    throw new Error(`LoRA: there is an adapter "${name}" already`);
  }
  for (const target of targets) {
    const { path, layer } = target;
    const adapted = layer instanceof LoraLinear ? layer : new LoraLinear(layer);
    const adapter = new LoraAdapter(target, config);
    adapter.train(layer.training);
    adapted.adapters.set(name, adapter);
    if (adapted !== layer) replaceModule(model, path, adapted);
  }
}

/** The adapted layers of a model by path. */
export function loraLayers(model: Module): Map<string, LoraLinear> {
  const layers = new Map<string, LoraLinear>();
  for (const [path, module] of model.namedModules()) {
    if (module instanceof LoraLinear) layers.set(path, module);
  }
  return layers;
}

/** All that holds adapters by name: the soft prompts, and the adapted layers. */
function adapterHolders(model: Module): (PromptAdapters | LoraLinear)[] {
  const prompts = promptsOf(model);
  return [...(prompts ? [prompts] : []), ...loraLayers(model).values()];
}

/** Names of the attached adapters. */
export function adapterNames(model: Module): string[] {
  return [...new Set(adapterHolders(model).flatMap((holder) => [...holder.adapters.keys()]))];
}

/**
 * Makes the named adapters the active ones, in this order; none switches all off. What is trained stays.
 *
 * Throws an `Error` where there is no adapter of a name, or two of them are soft prompts.
 */
export function setActive(model: Module, ...names: string[]): void {
  const attached = adapterNames(model);
  for (const name of names) {
    if (!attached.includes(name)) {
      throw new Error(`setActive: no adapter "${name}"; there is ${attached.join(", ") || "none"}`);
    }
  }
  // Prompts come first: theirs is the only refusal.
  for (const holder of adapterHolders(model)) {
    holder.active = names.filter((n) => holder.adapters.has(n));
  }
}

/**
 * Runs `fn` on the model as it is without adapters: how it compares with its base. They are back when
 * `fn`, or the promise it gives, is done, or has thrown.
 */
export function withoutAdapters<T>(model: Module, fn: () => T): T {
  const before = adapterHolders(model).map((holder) => [holder, holder.active] as const);
  const restore = (): void => {
    for (const [holder, active] of before) holder.active = active;
  };
  for (const [holder] of before) holder.active = [];
  let result: T;
  try {
    result = fn();
  } catch (error) {
    restore();
    throw error;
  }
  if (result instanceof Promise) return result.finally(restore) as T;
  restore();
  return result;
}

/**
 * Adds the active adapters to the weights and takes all adapters away: the model computes what it did
 * before, at the base's speed. A weight that is tied to another layer's is copied first.
 *
 * Throws an `Error` where a soft prompt is active, which no weight can hold.
 */
export function mergeAdapters<M extends Module>(model: M): M {
  const [prompt] = promptsOf(model)?.active ?? [];
  if (prompt !== undefined) {
    throw new Error(
      `mergeAdapters: the soft prompt "${prompt}" is active, which no weight can hold; ` +
        "switch it off with setActive(), or take all adapters away with removeAdapters()",
    );
  }
  removePrompts(model);
  const holders = new Map<Parameter, number>();
  for (const module of model.modules()) {
    for (const value of Object.values(module)) {
      if (value instanceof Parameter) holders.set(value, (holders.get(value) ?? 0) + 1);
    }
  }
  for (const [path, layer] of loraLayers(model)) {
    replaceModule(model, path, layer.merge((holders.get(layer.weight) ?? 0) > 1));
  }
  return model;
}

/** Takes all adapters away; the base is as it was. */
export function removeAdapters<M extends Module>(model: M): M {
  removePrompts(model);
  for (const [path, layer] of loraLayers(model)) {
    const { inFeatures, outFeatures, weight, bias } = layer;
    replaceModule(
      model,
      path,
      new Linear(inFeatures, outFeatures, { weight, bias: bias ?? false }),
    );
  }
  return model;
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

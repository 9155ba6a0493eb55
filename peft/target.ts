/**
 * Which modules an adapter goes to: PEFT's rules.
 *
 * @module
 */

import { Adapter, Conv1D, Embedding, Linear, Module } from "../nn/mod.ts";
import type { ResolvedLoraConfig } from "./config.ts";
import type { LoraBase } from "./layers.ts";

/** What PEFT adapts where no target is named, by model type. */
const DEFAULT_TARGETS: Readonly<Record<string, readonly string[]>> = {
  bert: ["query", "value"],
  gpt2: ["c_attn"],
  llama: ["q_proj", "v_proj"],
  mistral: ["q_proj", "v_proj"],
  qwen2: ["q_proj", "v_proj"],
  qwen3: ["q_proj", "v_proj"],
  roberta: ["query", "value"],
};

/** A layer to adapt. */
export interface Target {
  /** Its path in the model: names of fields, joined by dots. */
  readonly path: string;
  /** The layer there. */
  readonly layer: LoraBase;
  /** Rank of its adapter. */
  readonly r: number;
  /** α of its adapter. */
  readonly alpha: number;
}

/**
 * The layers of `model` that `config` names, with their rank and α. What the adapter has a full copy of
 * (modules_to_save) is left out.
 *
 * Throws an `Error` that lists the layers there are where none, or one that cannot be adapted, is named,
 * and where no target is named and none is known for the model.
 */
export function findTargets(model: Module, config: ResolvedLoraConfig): Target[] {
  const modules = baseModules(model);
  const targets = config.target_modules ?? defaultTargets(model);
  const output = (model as { outputEmbedding?: () => Module }).outputEmbedding?.();
  const saved = findSaved(model, config).map(([path]) => `${path}.`);
  const isLinear = (layer: Module): boolean => layer instanceof Linear || layer instanceof Conv1D;
  const matches = (path: string, layer: Module): boolean => {
    if (saved.some((s) => `${path}.`.startsWith(s))) return false;
    if (config.exclude_modules !== null && matchesName(path, config.exclude_modules)) return false;
    if (targets === "all-linear") return isLinear(layer) && layer !== output;
    return matchesName(path, targets) && matchesLayer(path, config);
  };
  const found: Target[] = [];
  const wrong: string[] = [];
  for (const [path, layer] of modules) {
    if (path === "" || !matches(path, layer)) continue;
    if (
      !(layer instanceof Linear || layer instanceof Conv1D || layer instanceof Embedding)
    ) wrong.push(`${path} (${layer.constructor.name})`);
    else {
      const r = patternValue(path, config.rank_pattern) ?? config.r;
      const alpha = patternValue(path, config.alpha_pattern) ?? config.lora_alpha;
      found.push({ path, layer, r, alpha });
    }
  }
  if (wrong.length > 0) {
    throw new Error(
      `LoRA: adapts Linear, Conv1D and Embedding layers, but ${JSON.stringify(targets)} names ${
        shortList(wrong)
      }; name layers, or "all-linear"`,
    );
  }
  if (found.length === 0) {
    const names = new Set(
      modules.filter(([, m]) => isLinear(m)).map(([path]) => path.replace(/^.*\./, "")),
    );
    throw new Error(
      `LoRA: target_modules ${JSON.stringify(targets)}` +
        (config.exclude_modules === null
          ? ""
          : ` without ${JSON.stringify(config.exclude_modules)}`) +
        (config.layers_to_transform === null
          ? ""
          : ` in layers ${JSON.stringify(config.layers_to_transform)}`) +
        ` names no layer of ${model.constructor.name}; its linear layers are ${
          [...names].join(", ")
        }`,
    );
  }
  return found;
}

/**
 * The modules that `modules_to_save` names, each by the end of its path, so that "norm" is every norm of
 * a Llama, as in PEFT; none within another.
 *
 * Throws an `Error` where it names none.
 */
export function findSaved(
  model: Module,
  config: { readonly modules_to_save?: readonly string[] | null },
): [string, Module][] {
  const names = config.modules_to_save ?? [];
  if (names.length === 0) return [];
  const found: [string, Module][] = [];
  for (const [path, module] of baseModules(model)) {
    if (path === "" || !names.some((name) => path.endsWith(name))) continue;
    if (!found.some(([outer]) => path.startsWith(`${outer}.`))) found.push([path, module]);
  }
  if (found.length === 0) {
    const direct = Object.entries(model).filter(([, m]) => m instanceof Module).map(([name]) =>
      name
    );
    throw new Error(
      `modules_to_save ${JSON.stringify(names)} names no module of ${model.constructor.name}, ` +
        `such as ${direct.join(", ")}`,
    );
  }
  return found;
}

/** All modules with their paths but for adapters, which are no targets themselves. */
export function baseModules(model: Module): [string, Module][] {
  const all = model.namedModules();
  const adapters = all.filter(([, m]) => m instanceof Adapter).map(([path]) => `${path}.`);
  return all.filter(([path]) => !adapters.some((a) => `${path}.`.startsWith(a)));
}

/** The first of a list, and how many more there are. */
function shortList(items: readonly string[]): string {
  const shown = items.slice(0, 6).join(", ");
  return items.length > 6 ? `${shown} and ${items.length - 6} more` : shown;
}

function defaultTargets(model: Module): readonly string[] {
  const type = (model as { config?: { model_type?: unknown } }).config?.model_type ?? "llama";
  const targets = "config" in model ? DEFAULT_TARGETS[String(type)] : undefined;
  if (!targets) {
    throw new Error(`LoRA: ${model.constructor.name} has no default target_modules: name them`);
  }
  return targets;
}

/** A string matches the whole name; one name of a list matches it or its ending after a dot. */
export function matchesName(path: string, names: string | readonly string[]): boolean {
  if (typeof names === "string") return pattern(names, "target_modules").test(path);
  return names.some((name) => path === name || path.endsWith(`.${name}`));
}

function matchesLayer(path: string, config: ResolvedLoraConfig): boolean {
  const { layers_to_transform: layers, layers_pattern: lists } = config;
  if (layers === null || (Array.isArray(layers) && layers.length === 0)) return true;
  const within = lists === null || lists.length === 0 ? ["[^.]*"] : [lists].flat();
  for (const list of within) {
    const index = path.match(new RegExp(`^.*?\\.(?:${list})\\.(\\d+)\\.`))?.[1] ??
      path.match(new RegExp(`^(?:${list})\\.(\\d+)\\.`))?.[1];
    if (index !== undefined) return [layers].flat().includes(Number(index));
  }
  return false;
}

/** The value of the first key that matches the name, or its ending after a dot. */
function patternValue(
  path: string,
  patterns: Readonly<Record<string, number>>,
): number | undefined {
  const key = Object.keys(patterns).find((key) =>
    pattern(`(?:.*\\.)?(?:${key})`, "rank_pattern or alpha_pattern").test(path)
  );
  return key === undefined ? undefined : patterns[key];
}

function pattern(source: string, what: string): RegExp {
  try {
    return new RegExp(`^(?:${source})$`);
  } catch (error) {
    throw new SyntaxError(
      `LoRA: ${what} needs a regular expression, got ${JSON.stringify(source)}: ${
        (error as Error).message
      }`,
    );
  }
}

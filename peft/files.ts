/**
 * Adapter files, in exactly the format of Hugging Face PEFT: `adapter_config.json` and
 * `adapter_model.safetensors`.
 *
 * @module
 */

import { openSafetensors, type Shape, type Variable, writeSafetensors } from "../core/mod.ts";
import { writeAtomically } from "../core/files.ts";
import type { Module } from "../nn/mod.ts";
import { readJson } from "../nn/models/pretrained.ts";
import { checkKeys, hostValues, safetensorsInput, writeHost } from "../nn/state.ts";
import {
  formatConfig,
  type LoraConfig,
  type ResolvedLoraConfig,
  resolveLoraConfig,
} from "./config.ts";
import { attach, loraLayers, setActive } from "./lora.ts";
import { isPromptType, type PromptConfig, type ResolvedPromptConfig } from "./prompt/config.ts";
import { readPrompt, writePrompt } from "./prompt/files.ts";
import { promptsOf } from "./prompt/holder.ts";
import { findTargets } from "./target.ts";

const CONFIG = "adapter_config.json", WEIGHTS = "adapter_model.safetensors";
const PREFIX = "base_model.model.";
/** The parts of an adapter; their names in a model and in a file are the same. */
const PARTS: readonly string[] = ["lora_A.weight", "lora_B.weight"];

/**
 * The key in a file of one part, such as "lora_A.weight", of the adapter beside the module `path`.
 * Holds no adapter's name.
 */
export function encodeKey(path: string, part: string): string {
  return `${PREFIX}${path}.${part}`;
}

/** What {@linkcode encodeKey} made the key from, or null where it made no such key. */
export function decodeKey(key: string): { path: string; part: string } | null {
  if (!key.startsWith(PREFIX)) return null;
  const part = PARTS.find((part) => key.endsWith(`.${part}`));
  if (part === undefined) return null;
  return { path: key.slice(PREFIX.length, -part.length - 1), part };
}

/** Options of {@linkcode saveAdapter}. */
export interface SaveAdapterOptions {
  /** Name of the adapter to write. Default "default". */
  readonly name?: string;
}

/** Options of {@linkcode loadAdapter}. */
export interface LoadAdapterOptions {
  /** The name it gets. Default "default". */
  readonly name?: string;
  /** Whether it is trained on; then all else is frozen. Default false. */
  readonly trainable?: boolean;
  /** Told of unknown keys in the configuration. Default `console.warn`. */
  readonly warn?: (message: string) => void;
}

/**
 * Writes an adapter into `folder`. PEFT loads it with `PeftModel.from_pretrained`. Each file is whole,
 * or what it was before. Of a soft prompt it has what stands before the input, not the projection or
 * network that makes it: to go on with training, keep those with `saveCheckpoint`.
 *
 * Throws an `Error` where the model has no such adapter, or a file cannot be written.
 */
export async function saveAdapter(
  model: Module,
  folder: string,
  { name = "default" }: SaveAdapterOptions = {},
): Promise<void> {
  let config: ResolvedLoraConfig | ResolvedPromptConfig | null = null;
  const prompt = promptsOf(model)?.adapters.get(name);
  const tensors = new Map<string, Variable>();
  for (const [path, layer] of loraLayers(model)) {
    const adapter = layer.adapters.get(name);
    if (!adapter) continue;
    config = adapter.config;
    tensors.set(encodeKey(path, "lora_A.weight"), adapter.lora_A.weight);
    tensors.set(encodeKey(path, "lora_B.weight"), adapter.lora_B.weight);
  }
  config ??= prompt?.config ?? null;
  if (!config) throw new Error(`saveAdapter: the model has no adapter "${name}"`);
  if (prompt) await writePrompt(`${folder}/${WEIGHTS}`, prompt);
  else {
    await writeSafetensors(
      `${folder}/${WEIGHTS}`,
      [...tensors].map(([key, variable]) => [key, safetensorsInput(variable)] as const),
      { format: "pt" },
    );
  }
  // After the weights: a folder with a configuration has both.
  await writeAtomically(`${folder}/${CONFIG}`, async (file) => {
    const text = formatConfig({ ...config, inference_mode: true });
    await file.write(new TextEncoder().encode(text));
  });
}

/**
 * Adds the adapter in `folder`, as {@linkcode saveAdapter} or PEFT wrote it, to the model and makes it
 * the active one. Gives its configuration.
 *
 * Throws an `Error` that names the file and lists every missing, unexpected and mis-shaped key, or says
 * what of the adapter is not built; then the model is as it was.
 */
export async function loadAdapter(
  model: Module,
  folder: string,
  options: LoadAdapterOptions = {},
): Promise<ResolvedLoraConfig | ResolvedPromptConfig> {
  const { name = "default", trainable = false } = options;
  const configFile = `${folder}/${CONFIG}`;
  const raw = await readJson("load adapter", configFile);
  if (!("peft_type" in raw)) {
    throw new TypeError(`load adapter: ${configFile} needs the key "peft_type"`);
  }
  if (isPromptType(raw.peft_type)) {
    return await readPrompt(
      model,
      `${folder}/${WEIGHTS}`,
      raw as unknown as PromptConfig,
      `load adapter: ${configFile}`,
      { name, trainable, warn: options.warn },
    );
  }
  const config = resolveLoraConfig(raw as LoraConfig, `load adapter: ${configFile}`, options.warn);
  const targets = findTargets(model, config);

  await using file = await openSafetensors(`${folder}/${WEIGHTS}`);
  const needed = new Map<string, Shape>();
  for (const { path, layer, r } of targets) {
    needed.set(encodeKey(path, "lora_A.weight"), [r, layer.inFeatures]);
    needed.set(encodeKey(path, "lora_B.weight"), [layer.outFeatures, r]);
  }
  const what = `load adapter: ${file.name}`;
  checkKeys(what, needed, file.entries);
  for (const [key, { dtype }] of file.entries) {
    if (!["F32", "F16", "BF16", "F64"].includes(dtype)) {
      throw new TypeError(`${what}: key "${key}" needs a floating-point dtype, has ${dtype}`);
    }
  }
  // Everything is read before the model is touched.
  const values = new Map<string, Awaited<ReturnType<typeof hostValues>>>();
  for (const [key, { dtype }] of file.entries) {
    values.set(key, hostValues(await file.read(key), dtype, `${what}: key "${key}"`));
  }

  attach(model, targets, config, name);
  const layers = loraLayers(model);
  for (const [key, data] of values) {
    const { path, part } = decodeKey(key)!;
    const adapter = layers.get(path)!.adapters.get(name)!;
    const variable = part === "lora_A.weight" ? adapter.lora_A.weight : adapter.lora_B.weight;
    await writeHost(variable, { shape: variable.shape, data }, key);
  }
  if (trainable) model.freeze();
  for (const layer of layers.values()) {
    for (const p of layer.adapters.get(name)?.parameters() ?? []) p.requiresGrad = trainable;
  }
  setActive(model, name);
  return config;
}

/**
 * Adapter files, in exactly the format of Hugging Face PEFT: `adapter_config.json` and
 * `adapter_model.safetensors`.
 *
 * @module
 */

import { openSafetensors, writeSafetensors } from "../core/mod.ts";
import { writeAtomically } from "../core/files.ts";
import type { HostTensor, Module, Parameter } from "../nn/mod.ts";
import { isThere, parseJson, pickledHint, readText } from "../nn/models/pretrained.ts";
import { checkKeys, hostValues, KeysError, safetensorsInput, writeHost } from "../nn/state.ts";
import { type LoraConfig, type ResolvedLoraConfig, resolveLoraConfig } from "./config.ts";
import { formatConfig, fromText } from "./config_text.ts";
import { isLoraLayer } from "./layers.ts";
import { attach, deleteAdapter } from "./lora.ts";
import { ownOf } from "./own.ts";
import { isPromptType, type PromptConfig, type ResolvedPromptConfig } from "./prompt/config.ts";
import { promptKey, readPrompt, writePrompt } from "./prompt/files.ts";
import { promptsOf } from "./prompt/holder.ts";
import { startFromBase } from "./start.ts";
import { adapterNames, adapterParameters, loraLayers, setActive } from "./switch.ts";
import { baseModules, findTargets } from "./target.ts";

const CONFIG = "adapter_config.json", WEIGHTS = "adapter_model.safetensors";
const PREFIX = "base_model.model.";
/** What PEFT calls the parts of an adapter; "base_layer" is the adapted layer itself. */
const PARTS: readonly string[] = [
  "lora_A.weight",
  "lora_B.weight",
  "lora_B.bias",
  "lora_embedding_A",
  "lora_embedding_B",
  "lora_magnitude_vector",
  "base_layer.bias",
  "base_layer.weight",
];

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

/**
 * The parameters of an adapter by their keys in PEFT's files: A and B, DoRA's magnitudes, and its own
 * copies of modules and biases. Of a soft prompt its copies alone: what makes its rows has no key.
 */
export function adapterState(model: Module, name = "default"): Map<string, Parameter> {
  const state = new Map<string, Parameter>();
  const isPrompt = promptsOf(model)?.adapters.has(name) ?? false;
  for (const [path, module] of baseModules(model)) {
    const pair = isLoraLayer(module) ? module.adapters.get(name) : undefined;
    for (const [part, parameter] of pair?.parts() ?? []) {
      state.set(encodeKey(path, part), parameter);
    }
    for (const [inner, parameter] of ownOf(module)?.adapters.get(name)?.values ?? []) {
      const key = isPrompt
        ? promptKey(path, inner)
        : encodeKey(path, pair ? `base_layer.${inner}` : inner);
      state.set(key, parameter);
    }
  }
  return state;
}

/** Weights of the base that PEFT keeps in an adapter's file too. */
function baseState(model: Module, name: string): Map<string, Parameter> {
  const state = new Map<string, Parameter>();
  for (const [path, layer] of loraLayers(model)) {
    if (layer.adapters.get(name)?.savesBase) {
      state.set(encodeKey(path, "base_layer.weight"), layer.weight);
    }
  }
  return state;
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
  const tensors = new Map([...adapterState(model, name), ...baseState(model, name)]);
  for (const layer of loraLayers(model).values()) {
    config ??= layer.adapters.get(name)?.config ?? null;
  }
  config ??= prompt?.config ?? null;
  if (!config) {
    const names = adapterNames(model).join(", ") || "none";
    throw new Error(`saveAdapter: the model has no adapter "${name}"; there is ${names}`);
  }
  if (prompt) await writePrompt(`${folder}/${WEIGHTS}`, prompt, tensors);
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
 * Writes every adapter as PEFT's `save_pretrained` does: "default" into `folder` itself, each other into
 * a folder of its name in there. Gives the folders by the adapters' names; `loadAdapter` takes one.
 *
 * Throws an `Error` where the model has no adapter, or a file cannot be written.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { addAdapter, loadAdapter, saveAdapters, unload } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * for (const name of ["default", "poems"]) addAdapter(model, { r: 4 }, { name });
 * const folders = await saveAdapters(model, await Deno.makeTempDir());
 * unload(model);
 * for (const [name, folder] of folders) await loadAdapter(model, folder, { name });
 * ```
 */
export async function saveAdapters(model: Module, folder: string): Promise<Map<string, string>> {
  const names = adapterNames(model);
  if (names.length === 0) throw new Error("saveAdapters: the model has no adapter");
  const folders = new Map<string, string>();
  for (const name of names) {
    const own = name === "default" ? folder : `${folder}/${name}`;
    await saveAdapter(model, own, { name });
    folders.set(name, own);
  }
  return folders;
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
  await checkFolder(folder);
  const text = await readText("load adapter", configFile);
  const raw = fromText(parseJson("load adapter", configFile, text), text);
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
  if (raw.peft_type !== "LORA") {
    throw new TypeError(
      `load adapter: ${configFile}: peft_type ${
        JSON.stringify(raw.peft_type)
      } is not built; LORA, ` +
        "PROMPT_TUNING, PREFIX_TUNING and P_TUNING are",
    );
  }
  const config = resolveLoraConfig(raw as LoraConfig, `load adapter: ${configFile}`, options.warn);
  const targets = findTargets(model, config);

  await using file = await openSafetensors(`${folder}/${WEIGHTS}`);
  const what = `load adapter: ${file.name}`;
  for (const [key, { dtype }] of file.entries) {
    if (!["F32", "F16", "BF16", "F64"].includes(dtype)) {
      throw new TypeError(`${what}: key "${key}" needs a floating-point dtype, has ${dtype}`);
    }
  }
  attach(model, targets, config, name);
  try {
    const state = adapterState(model, name);
    const needed = new Map([...state].map(([key, { shape }]) => [key, shape] as const));
    const layers = loraLayers(model);
    for (const { path } of targets) {
      const layer = layers.get(path)!;
      const key = encodeKey(path, "base_layer.weight");
      layer.adapters.get(name)!.savesBase = file.entries.has(key);
      if (file.entries.has(key)) needed.set(key, layer.weight.shape);
    }
    checkKeys(what, needed, file.entries);
    const values = new Map<string, Awaited<ReturnType<typeof hostValues>>>();
    for (const [key, { dtype }] of file.entries) {
      values.set(key, hostValues(await file.read(key), dtype, `${what}: key "${key}"`));
    }
    for (const [key, weight] of baseState(model, name)) {
      await checkSame(`${what}: key "${key}"`, weight, values.get(key)!);
    }
    await startFromBase(model, name);
    for (const [key, parameter] of state) {
      await writeHost(parameter, { shape: parameter.shape, data: values.get(key)! }, key);
    }
  } catch (error) {
    deleteAdapter(model, name);
    throw error instanceof KeysError ? forBase(error, config.base_model_name_or_path) : error;
  }
  if (trainable) model.freeze();
  for (const p of adapterParameters(model, name)) p.requiresGrad = trainable;
  setActive(model, name);
  return config;
}

/** Throws where a folder is plainly no adapter that can be read, and says what it is. */
async function checkFolder(folder: string): Promise<void> {
  if (await isThere(`${folder}/${CONFIG}`)) {
    if (await isThere(`${folder}/${WEIGHTS}`)) return;
    const hint = await pickledHint(folder, "adapter_model", "the adapter with PEFT");
    if (hint) throw new Error(`load adapter: needs ${folder}/${WEIGHTS}${hint}`);
  } else if (await isThere(`${folder}/config.json`)) {
    throw new Error(
      `load adapter: ${folder} holds a model, no adapter: it has config.json and no ${CONFIG}`,
    );
  }
}

/** Says which base an adapter whose keys do not fit is for. */
function forBase(error: KeysError, base?: string | null): KeysError {
  const which = base ? `; its configuration names ${base}` : "";
  return new KeysError(`${error.message}\nAn adapter fits the base it was trained on${which}`);
}

/** Throws where the file's copy of a weight is not the model's: the adapter is for another base. */
async function checkSame(
  what: string,
  weight: Parameter,
  values: HostTensor["data"],
): Promise<void> {
  const own = await weight.data();
  // Files may be rounded to 16 bits.
  const differ = own.some((x, i) => Math.abs(x - values[i]) > 0.01 * Math.abs(x) + 1e-6);
  if (differ) {
    throw new Error(
      `${what}: the file's copy of this weight is not the model's; load the base that the adapter ` +
        "was trained on",
    );
  }
}

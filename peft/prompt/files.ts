/**
 * Soft prompts in PEFT's files. A file holds the rows themselves, under one key: what an encoder or a
 * projection makes, not what it is made from; and the modules that were trained with them.
 *
 * @module
 */

import { noGrad, openSafetensors, tensor, writeSafetensors } from "../../core/mod.ts";
import type { Module, Parameter, PromptHost } from "../../nn/mod.ts";
import { checkKeys, hostValues, safetensorsInput, writeHost } from "../../nn/state.ts";
import { baseParameter, ownOf, parameterPaths } from "../own.ts";
import { checkNewName } from "../switch.ts";
import { findSaved } from "../target.ts";
import { type PromptAdapter, PromptTable } from "./adapter.ts";
import { type PromptConfig, type ResolvedPromptConfig, resolvePromptConfig } from "./config.ts";
import { attachPrompt } from "./inject.ts";

const KEY = "prompt_embeddings";

/** The key in a prompt's file of the parameter `inner` of the module `path` that is trained with it. */
export function promptKey(path: string, inner: string): string {
  return `base_model.${path}.${inner}`;
}

/** Writes the rows of `adapter`, and its copies of modules, into the safetensors file at `path`. */
export async function writePrompt(
  path: string,
  adapter: PromptAdapter,
  copies: ReadonlyMap<string, Parameter>,
): Promise<void> {
  const rows = noGrad(() => adapter.rows());
  const data = async (): Promise<Uint8Array<ArrayBuffer>> => {
    const values = await rows.data() as Float32Array<ArrayBuffer>;
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  };
  const input = { dtype: "F32", shape: rows.shape, data } as const;
  const others = [...copies].map(([key, value]) => [key, safetensorsInput(value)] as const);
  await writeSafetensors(path, [[KEY, input], ...others], { format: "pt" });
}

/** What {@linkcode readPrompt} is told. */
export interface ReadPromptOptions {
  /** The name it gets. */
  readonly name: string;
  /** Whether it is trained on; then all else is frozen. */
  readonly trainable: boolean;
  /** Told of unknown keys in the configuration. */
  readonly warn?: (message: string) => void;
}

/**
 * Puts the prompt in the file `weights`, with the configuration `raw` of the file `source`, before the
 * input of `model`. Its rows are trained as they are, whatever they came from.
 *
 * Throws an `Error` that lists what does not fit; then the model is as it was.
 */
export async function readPrompt(
  model: Module,
  weights: string,
  raw: PromptConfig,
  source: string,
  { name, trainable, warn }: ReadPromptOptions,
): Promise<ResolvedPromptConfig> {
  if (!("promptSizes" in model)) {
    throw new TypeError(`${source}: ${model.constructor.name} takes no soft prompt`);
  }
  const host = model as Module & PromptHost;
  const sizes = host.promptSizes();
  const config = resolvePromptConfig(raw, sizes, source, warn);
  checkNewName(model, name);
  const width = config.token_dim * (config.peft_type === "PREFIX_TUNING" ? 2 * sizes.layers : 1);
  const shape = [config.num_virtual_tokens, width];

  const saved = findSaved(model, config);
  const needed = new Map([[KEY, shape as readonly number[]]]);
  for (const [path, module] of saved) {
    for (const inner of parameterPaths(module)) {
      needed.set(promptKey(path, inner), baseParameter(module, inner).shape);
    }
  }

  await using file = await openSafetensors(weights);
  const what = `load adapter: ${file.name}`;
  checkKeys(what, needed, file.entries);
  const values = new Map<string, ReturnType<typeof hostValues>>();
  for (const [key, { dtype }] of file.entries) {
    if (!["F32", "F16", "BF16", "F64"].includes(dtype)) {
      throw new TypeError(`${what}: key "${key}" needs a floating-point dtype, has ${dtype}`);
    }
    values.set(key, hostValues(await file.read(key), dtype, `${what}: key "${key}"`));
  }
  const rows = tensor(values.get(KEY)!, { shape });
  attachPrompt(host, new PromptTable(config, sizes, rows), name, trainable);
  for (const [path, module] of saved) {
    for (const [inner, parameter] of ownOf(module)!.adapters.get(name)!.values) {
      const data = values.get(promptKey(path, inner))!;
      await writeHost(parameter, { shape: parameter.shape, data }, promptKey(path, inner));
    }
  }
  return config;
}

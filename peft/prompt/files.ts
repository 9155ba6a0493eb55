/**
 * Soft prompts in PEFT's files. A file holds the rows themselves, under one key: what an encoder or a
 * projection makes, not what it is made from.
 *
 * @module
 */

import { noGrad, openSafetensors, tensor, writeSafetensors } from "../../core/mod.ts";
import type { Module, PromptHost } from "../../nn/mod.ts";
import { checkKeys, hostValues } from "../../nn/state.ts";
import { type PromptAdapter, PromptTable } from "./adapter.ts";
import { type PromptConfig, type ResolvedPromptConfig, resolvePromptConfig } from "./config.ts";
import { attachPrompt, checkName } from "./inject.ts";

const KEY = "prompt_embeddings";

/** Writes the rows of `adapter` into the safetensors file at `path`. */
export async function writePrompt(path: string, adapter: PromptAdapter): Promise<void> {
  const rows = noGrad(() => adapter.rows());
  const data = async (): Promise<Uint8Array<ArrayBuffer>> => {
    const values = await rows.data() as Float32Array<ArrayBuffer>;
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  };
  const input = { dtype: "F32", shape: rows.shape, data } as const;
  await writeSafetensors(path, [[KEY, input]], { format: "pt" });
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
  checkName(model, name);
  const width = config.token_dim * (config.peft_type === "PREFIX_TUNING" ? 2 * sizes.layers : 1);
  const shape = [config.num_virtual_tokens, width];

  await using file = await openSafetensors(weights);
  const what = `load adapter: ${file.name}`;
  checkKeys(what, new Map([[KEY, shape]]), file.entries);
  const { dtype } = file.entries.get(KEY)!;
  if (!["F32", "F16", "BF16", "F64"].includes(dtype)) {
    throw new TypeError(`${what}: key "${KEY}" needs a floating-point dtype, has ${dtype}`);
  }
  const values = hostValues(await file.read(KEY), dtype, `${what}: key "${KEY}"`);
  attachPrompt(host, new PromptTable(config, sizes, tensor(values, { shape })), name, trainable);
  return config;
}

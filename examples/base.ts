/**
 * The model that is adapted, and its tokenizer: stories15M, or a folder or id of Hugging Face's.
 *
 * @module
 */

import { loadModelFolder, loadStories15M, loadTokenizer, type Tokenizer } from "@graft/ml/data";
import { CausalLM, loadModel } from "@graft/ml/nn";
import type { Settings } from "./settings.ts";

/** A model with what turns text into its tokens. */
export interface Base {
  /** Where its files are. */
  readonly folder: string;
  readonly model: CausalLM;
  readonly tokenizer: Tokenizer;
}

/**
 * Loads a decoder by "stories15M", a folder's path or a hub id, its linear layers packed where `quantize`
 * says so.
 *
 * Throws an `Error` where it is no decoder, or its tokenizer has tokens that the model has not; tells where
 * it has far fewer.
 */
export async function loadBase(
  name: string,
  tell: (text: string) => void,
  quantize: Settings["quantize"] = "none",
): Promise<Base> {
  let shown = 0;
  const folder = name === "stories15M"
    ? await loadStories15M({ onProgress: tell })
    : await loadModelFolder(name, {
      onProgress: ({ path, loaded, total }) => {
        if (performance.now() - shown < 5000 && loaded < total) return;
        shown = performance.now();
        tell(`${name}: ${path}, ${mib(loaded)} of ${mib(total)} MiB`);
      },
    });
  if (await exists(`${folder}/adapter_config.json`) && !(await exists(`${folder}/config.json`))) {
    throw new Error(`${name} is an adapter: a model is needed (deno task generate has --adapter)`);
  }
  const model = await loadModel(folder, quantize === "none" ? {} : { quantize });
  if (!(model instanceof CausalLM)) {
    throw new Error(
      `${name} is a ${model.constructor.name}, which predicts no next token: a decoder is needed, ` +
        "such as a LlamaForCausalLM",
    );
  }
  const tokenizer = await loadTokenizer(folder);
  const { vocab_size: size } = model.config;
  if (tokenizer.vocabSize > size) {
    throw new Error(
      `${folder}: the tokenizer has ${tokenizer.vocabSize} tokens and the model ${size}: ` +
        "tokenizer.json is another model's",
    );
  }
  // Models round their vocabulary up, by a few hundred; more than that looks like a mistake.
  if (tokenizer.vocabSize < 0.9 * size) {
    tell(
      `warning: ${folder}: the tokenizer has ${tokenizer.vocabSize} tokens and the model ${size}; ` +
        "if tokenizer.json is another model's, what is read and written is nonsense",
    );
  }
  return { folder, model, tokenizer };
}

function exists(path: string): Promise<boolean> {
  return Deno.stat(path).then(() => true, () => false);
}

function mib(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}

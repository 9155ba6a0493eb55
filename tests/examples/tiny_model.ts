/**
 * Folders of tiny random models with stories15M's tokenizer, for tests of what loads a model.
 *
 * @module
 */

import { init, manualSeed } from "@graft/ml";
import { loadStories15M } from "@graft/ml/data";
import { LlamaForCausalLM } from "@graft/ml/nn";

/** A Llama with grouped queries and random weights in a new folder, with stories15M's tokenizer. */
export async function tinyModel(vocabulary = 32000): Promise<string> {
  const folder = await Deno.makeTempDir();
  const device = await init({ device: "cpu" });
  manualSeed(5);
  await new LlamaForCausalLM({
    vocab_size: vocabulary,
    hidden_size: 16,
    intermediate_size: 32,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 64,
    tie_word_embeddings: true,
  }).savePretrained(folder);
  await device.close();
  const stories = await loadStories15M();
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    await Deno.copyFile(`${stories}/${name}`, `${folder}/${name}`);
  }
  return folder;
}

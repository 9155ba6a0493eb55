/**
 * The class of a model by its folder.
 *
 * @module
 */

import {
  BertForMaskedLM,
  BertForSequenceClassification,
  BertForTokenClassification,
  BertModel,
} from "./bert.ts";
import { modelConfig } from "./config_file.ts";
import {
  GPT2ForSequenceClassification,
  LlamaForSequenceClassification,
  MistralForSequenceClassification,
  Qwen2ForSequenceClassification,
  Qwen3ForSequenceClassification,
} from "./decoder_classifiers.ts";
import { GPT2LMHeadModel } from "./gpt2.ts";
import { LlamaForCausalLM } from "./llama.ts";
import { MistralForCausalLM } from "./mistral.ts";
import {
  type PretrainedClass,
  PretrainedModel,
  type PretrainedOptions,
} from "./pretrained_model.ts";
import { Qwen2ForCausalLM } from "./qwen2.ts";
import { Qwen3ForCausalLM } from "./qwen3.ts";
import {
  RobertaForMaskedLM,
  RobertaForSequenceClassification,
  RobertaForTokenClassification,
  RobertaModel,
} from "./roberta.ts";

/** Every class, the default of each model_type first. */
const CLASSES: readonly PretrainedClass[] = [
  LlamaForCausalLM,
  MistralForCausalLM,
  Qwen2ForCausalLM,
  Qwen3ForCausalLM,
  GPT2LMHeadModel,
  LlamaForSequenceClassification,
  MistralForSequenceClassification,
  Qwen2ForSequenceClassification,
  Qwen3ForSequenceClassification,
  GPT2ForSequenceClassification,
  BertModel,
  BertForSequenceClassification,
  BertForTokenClassification,
  BertForMaskedLM,
  RobertaModel,
  RobertaForSequenceClassification,
  RobertaForTokenClassification,
  RobertaForMaskedLM,
];

/**
 * The model in a folder of Hugging Face's layout, of the class that `architectures` of its `config.json`
 * names, or where that is missing, of the first that `model_type` has. Otherwise as `fromPretrained` of
 * that class.
 *
 * Throws a `TypeError` that names an architecture that is not supported, and lists those that are.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { CausalLM, LlamaForCausalLM, loadModel } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const folder = await Deno.makeTempDir();
 * await new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * }).savePretrained(folder);
 * const model = await loadModel(folder);
 * console.log(model instanceof CausalLM); // true
 * ```
 */
export async function loadModel(
  folder: string,
  options: PretrainedOptions = {},
): Promise<PretrainedModel> {
  const { config, path } = await modelConfig(folder);
  const { architectures, model_type: type } = config;
  const names = Array.isArray(architectures) ? architectures : [];
  const found = CLASSES.find(({ pretrained }) =>
    names.length > 0 ? names.includes(pretrained.architecture) : pretrained.modelType === type
  );
  if (!found) {
    throw new TypeError(
      `load model: ${path}: architectures ${
        JSON.stringify(architectures ?? null)
      } with model_type ` +
        `${JSON.stringify(type ?? null)} is not supported; these are: ` +
        CLASSES.map(({ pretrained }) => pretrained.architecture).join(", "),
    );
  }
  return await PretrainedModel.fromPretrained.call(found, folder, options);
}

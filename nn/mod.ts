/**
 * Modules, layers, losses, models and generation.
 *
 * @module
 */

export * from "./activations.ts";
export * from "./dropout.ts";
export * from "./embedding.ts";
export * from "./generate.ts";
export * from "./linear.ts";
export * from "./losses.ts";
export {
  type BertConfig,
  BertForMaskedLM,
  BertForSequenceClassification,
  BertForTokenClassification,
  BertMaskedHead,
  BertModel,
  BertPredictions,
  BertPredictionTransform,
} from "./models/bert.ts";
export * from "./models/cache.ts";
export { loadModel } from "./models/auto.ts";
export { CausalLM, type ForwardOptions, type LanguageBatch } from "./models/decoder.ts";
export {
  type ClassifierBatch,
  type ClassifierConfig,
  type ClassifierOptions,
  DecoderClassifier,
} from "./models/decoder_classifier.ts";
export {
  GPT2ForSequenceClassification,
  LlamaForSequenceClassification,
  MistralForSequenceClassification,
  Qwen2ForSequenceClassification,
  Qwen3ForSequenceClassification,
} from "./models/decoder_classifiers.ts";
export {
  LlamaAttention,
  LlamaDecoderLayer,
  LlamaForCausalLM,
  LlamaMLP,
  LlamaModel,
  type LlamaPass,
} from "./models/llama.ts";
export {
  Encoder,
  EncoderAttention,
  EncoderEmbeddings,
  EncoderIntermediate,
  EncoderLayer,
  type EncoderOptions,
  EncoderOutput,
  EncoderPooler,
  EncoderSelfAttention,
} from "./models/encoder.ts";
export {
  type EncoderConfig,
  type ProblemType,
  type ResolvedEncoderConfig,
} from "./models/encoder_config.ts";
export type { EncoderBatch } from "./models/encoder_heads.ts";
export { EncoderHead, EncoderModel, SequenceHead, TokenHead } from "./models/encoder_model.ts";
export {
  GPT2Attention,
  GPT2Block,
  type GPT2Config,
  GPT2LMHeadModel,
  GPT2MLP,
  GPT2Model,
  type GPT2Pass,
  type ResolvedGPT2Config,
  resolveGPT2Config,
} from "./models/gpt2.ts";
export {
  type FilledLlamaConfig,
  type LlamaConfig,
  type LlamaFamily,
  type LlamaTraits,
  type ResolvedLlamaConfig,
  resolveLlamaConfig,
  ropeFrequencies,
  type RopeScaling,
} from "./models/llama_config.ts";
export { type MistralConfig, MistralForCausalLM } from "./models/mistral.ts";
export { type Qwen2Config, Qwen2ForCausalLM } from "./models/qwen2.ts";
export { type Qwen3Config, Qwen3ForCausalLM } from "./models/qwen3.ts";
export {
  type LayerPrefix,
  type PromptHost,
  type PromptPass,
  type PromptSizes,
  SoftPrompt,
} from "./models/prompt.ts";
export {
  RobertaClassificationHead,
  type RobertaConfig,
  RobertaForMaskedLM,
  RobertaForSequenceClassification,
  RobertaForTokenClassification,
  RobertaLMHead,
  RobertaModel,
} from "./models/roberta.ts";
export {
  type PretrainedClass,
  type PretrainedInfo,
  PretrainedModel,
  type PretrainedOptions,
} from "./models/pretrained_model.ts";
export {
  Adapter,
  type LoadFileOptions,
  type LoadOptions,
  Module,
  Parameter,
  type ParameterOptions,
  replaceModule,
  tiedParameters,
} from "./module.ts";
export * from "./norm.ts";
export { dequantize, quantize, type QuantizeOptions } from "./quantize.ts";
export { layerProduct, QuantizedParameter, type QuantizedParameterOptions } from "./quantized.ts";
export * from "./sampling.ts";
export type { HostTensor } from "./state.ts";

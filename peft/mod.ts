/**
 * Parameter-efficient fine-tuning: LoRA and soft prompts, in Hugging Face PEFT's file format.
 *
 * @module
 */

export {
  type EvaConfig,
  type LoftqConfig,
  type LoraConfig,
  type ResolvedLoraConfig,
  resolveLoraConfig,
} from "./config.ts";
export { formatConfig } from "./config_text.ts";
export type { Arithmetic, MajoritySign } from "./arithmetic.ts";
export { addWeightedAdapter, type CombinationOptions, type CombinationType } from "./combine.ts";
export {
  adapterState,
  decodeKey,
  encodeKey,
  loadAdapter,
  type LoadAdapterOptions,
  saveAdapter,
  type SaveAdapterOptions,
  saveAdapters,
} from "./files.ts";
export {
  type Adapted,
  type LoraBase,
  LoraConv1D,
  LoraEmbedding,
  type LoraLayer,
  LoraLinear,
  type Merged,
} from "./layers.ts";
export { addAdapter, deleteAdapter, inject, type InjectOptions, unload } from "./lora.ts";
export { merge, mergeAndUnload, type MergeOptions, type MergeRounding, unmerge } from "./merge.ts";
export { Own, OwnValues } from "./own.ts";
export {
  LoraAdapter,
  LoraEmbeddingAdapter,
  LoraPair,
  type PairBase,
  type PairSizes,
} from "./pair.ts";
export {
  PrefixProjection,
  PromptAdapter,
  PromptEncoder,
  PromptRows,
  PromptTable,
} from "./prompt/adapter.ts";
export {
  type PrefixTuningConfig,
  type PromptBaseConfig,
  type PromptConfig,
  type PromptEncoderConfig,
  type PromptTuningConfig,
  type ResolvedPromptConfig,
  resolvePromptConfig,
} from "./prompt/config.ts";
export { PromptAdapters } from "./prompt/holder.ts";
export { injectPrompt, type InjectPromptOptions } from "./prompt/inject.ts";
export { PromptLstm } from "./prompt/lstm.ts";
export {
  keysAndValues,
  type PrefixStart,
  type PromptDecoder,
  type PromptDecoderHead,
  type PromptEncoderModel,
  type PromptModel,
} from "./prompt/start.ts";
export { injectFromBase, type InjectFromBaseOptions } from "./start.ts";
export {
  type AdapterStatus,
  adapterStatus,
  countParameters,
  describeParameters,
  type LayerStatus,
  layerStatus,
  setActive,
  setTrainable,
  withAdapters,
  withoutAdapters,
  withRowAdapters,
} from "./switch.ts";
export { findTargets, matchesName, type Target } from "./target.ts";

/**
 * Parameter-efficient fine-tuning: LoRA and soft prompts, in Hugging Face PEFT's file format.
 *
 * @module
 */

export {
  formatConfig,
  type LoraConfig,
  type ResolvedLoraConfig,
  resolveLoraConfig,
} from "./config.ts";
export {
  decodeKey,
  encodeKey,
  loadAdapter,
  type LoadAdapterOptions,
  saveAdapter,
  type SaveAdapterOptions,
} from "./files.ts";
export {
  countParameters,
  inject,
  type InjectOptions,
  LoraAdapter,
  LoraLinear,
  mergeAdapters,
  removeAdapters,
  setActive,
  withoutAdapters,
} from "./lora.ts";
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
export { keysAndValues, type PrefixStart, type PromptModel } from "./prompt/start.ts";
export { findTargets, matchesName, type Target } from "./target.ts";

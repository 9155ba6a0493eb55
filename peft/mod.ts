/**
 * Parameter-efficient fine-tuning: LoRA, in Hugging Face PEFT's file format.
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
export { findTargets, matchesName, type Target } from "./target.ts";

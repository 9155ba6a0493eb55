/**
 * Text, tokenizers and batches. Stands on its own: batches are plain arrays.
 *
 * @module
 */

export * from "./stories15m.ts";
export * from "./hub.ts";
export * from "./tokenizer.ts";
export * from "./text.ts";
export {
  type ChatMessage,
  type ChatRole,
  ChatTemplate,
  type ChatTemplateOptions,
  loadChatTemplate,
  type RenderChatOptions,
} from "./chat.ts";
export * from "./chat_tokens.ts";
export * from "./cache.ts";
export {
  type Dataset,
  IGNORED_TARGET,
  pack,
  type PackOptions,
  splitTail,
  type TokenWindow,
} from "./packing.ts";
export * from "./loader.ts";
export { DistributedSampler, type DistributedSamplerOptions, type Shard } from "./sampler.ts";

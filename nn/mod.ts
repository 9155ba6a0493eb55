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
export * from "./models/cache.ts";
export * from "./models/llama.ts";
export * from "./models/llama_config.ts";
export {
  Adapter,
  type LoadFileOptions,
  type LoadOptions,
  Module,
  Parameter,
  type ParameterOptions,
  replaceModule,
} from "./module.ts";
export * from "./norm.ts";
export * from "./sampling.ts";
export type { HostTensor } from "./state.ts";

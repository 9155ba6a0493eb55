/**
 * Soft prompts beside a frozen model: prompt tuning, P-tuning v1, prefix tuning (P-tuning v2).
 *
 * @module
 */

import type { Module, PromptHost } from "../../nn/mod.ts";
import { withHeads } from "../lora.ts";
import { giveModules } from "../own.ts";
import { adapterParameters, checkNewName, setActive } from "../switch.ts";
import { findSaved } from "../target.ts";
import { PrefixProjection, type PromptAdapter, PromptEncoder, PromptTable } from "./adapter.ts";
import { type PromptConfig, type ResolvedPromptConfig, resolvePromptConfig } from "./config.ts";
import { PromptAdapters } from "./holder.ts";
import { PromptLstm } from "./lstm.ts";
import { type PrefixStart, type PromptModel, startPrefix, startVectors } from "./start.ts";

/** Options of {@linkcode injectPrompt}. */
export interface InjectPromptOptions {
  /** The adapter's name. Default "default". */
  readonly name?: string;
  /** Whether the prompt is trained. Default true. */
  readonly trainable?: boolean;
  /**
   * The tokens that a prefix, or prompt tuning by "TEXT", starts from: cut to the virtual tokens, or
   * said again until there are enough.
   */
  readonly tokens?: ArrayLike<number>;
  /**
   * How a prefix starts: from the keys and values that the model has for `tokens`, from N(0, 1), or
   * from zeros. Default "text"; "zero" with init_weights "zero"; "random" with a projection, which
   * cannot start from a text.
   */
  readonly start?: PrefixStart;
  /** Told of unknown keys in the configuration. Default `console.warn`. */
  readonly warn?: (message: string) => void;
}

/**
 * Puts a soft prompt before every input of `model`, freezes everything else, and makes the prompt the
 * active one. From then on `forward`, `loss` and generation have it: hidden states and logits are those
 * of the tokens alone, positions begin after the virtual tokens, and a cache (made after this) holds
 * the prompt from its first pass on. No virtual token is a target, and none predicts the first token.
 * Fresh numbers come from the default generator: see `manualSeed`.
 *
 * Throws a `TypeError` or `RangeError` where the configuration or an option cannot be, or the model
 * takes no soft prompt, and an `Error` where the name is taken; then the model is as it was.
 *
 * @example P-tuning v2, from the keys and values of a text
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { countParameters, injectPrompt } from "@graft/ml/peft";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 2, num_attention_heads: 2,
 * });
 * await injectPrompt(
 *   model,
 *   { peft_type: "PREFIX_TUNING", num_virtual_tokens: 4 },
 *   { tokens: [7, 12, 3, 9] },
 * );
 * console.log(countParameters(model).trainable); // 4 · 2 · 2 · 16 = 256
 * const ids = tensor([[1, 2, 3]], { dtype: "i32" });
 * console.log(model.forward(ids).shape); // [1, 3, 16]: one state a token
 * ```
 */
export async function injectPrompt<M extends PromptModel>(
  model: M,
  config: PromptConfig,
  options: InjectPromptOptions = {},
): Promise<M> {
  const { name = "default", trainable = true, tokens } = options;
  const resolved = resolvePromptConfig(
    withHeads(model, config),
    model.promptSizes(),
    "PromptConfig",
    options.warn,
  );
  checkNewName(model, name);
  findSaved(model, resolved);
  const adapter = await fresh(model, resolved, options.start, tokens);
  model.freeze();
  attachPrompt(model, adapter, name, trainable);
  return model;
}

async function fresh(
  model: PromptModel,
  config: ResolvedPromptConfig,
  start?: PrefixStart,
  tokens?: ArrayLike<number>,
): Promise<PromptAdapter> {
  const sizes = model.promptSizes();
  const refuse = (what: string): never => {
    throw new TypeError(`injectPrompt: ${what}`);
  };
  if (config.peft_type !== "PREFIX_TUNING") {
    if (start) refuse(`start is an option of PREFIX_TUNING, got ${config.peft_type}`);
    if (config.peft_type === "PROMPT_TUNING") {
      return new PromptTable(config, sizes, startVectors(model, config, tokens));
    }
    if (tokens) refuse("P_TUNING does not start from tokens: its vectors come from a network");
    return config.encoder_reparameterization_type === "LSTM"
      ? new PromptLstm(config, sizes)
      : new PromptEncoder(config, sizes);
  }
  const wanted = start ??
    (config.init_weights === "zero" ? "zero" : config.prefix_projection ? "random" : "text");
  if (config.init_weights === "zero" && wanted !== "zero") {
    refuse(`start "${wanted}" contradicts init_weights "zero"`);
  }
  if (tokens && wanted !== "text") {
    refuse(
      config.prefix_projection
        ? "a prefix with projection cannot start from tokens; leave out prefix_projection"
        : `tokens are for start "text", got "${wanted}"`,
    );
  }
  // The file says how it started, as far as PEFT has a word for it.
  const named = { ...config, init_weights: wanted === "zero" ? "zero" : null } as typeof config;
  if (!config.prefix_projection) {
    return new PromptTable(named, sizes, await startPrefix(model, named, wanted, tokens));
  }
  if (wanted === "text") {
    refuse("a prefix with projection cannot start from a text; leave out prefix_projection");
  }
  return new PrefixProjection(named, sizes);
}

/**
 * Puts a prompt before the input, gives it its copies of modules, and makes it the active one; where it
 * is trained, nothing else is.
 */
export function attachPrompt(
  model: Module & PromptHost,
  adapter: PromptAdapter,
  name: string,
  trainable: boolean,
): void {
  if (model.prompt !== null && !(model.prompt instanceof PromptAdapters)) {
    throw new Error("soft prompt: the model has a prompt of another kind");
  }
  giveModules(findSaved(model, adapter.config), name);
  const prompts = model.prompt ?? new PromptAdapters();
  adapter.train(model.training);
  prompts.adapters.set(name, adapter);
  model.prompt = prompts;
  setActive(model, name);
  if (trainable) model.freeze();
  model.namedParameters(); // who walks first names a parameter: its path is from the model on
  for (const parameter of adapterParameters(model, name)) parameter.requiresGrad = trainable;
}

/**
 * How soft prompts start. A good start is worth more than any other setting: on Llama-3.2-3B a prefix
 * reaches 18.6 % on GSM8K from random numbers, 35.8 % from zeros, and 41.6 % from a text.
 *
 * @module
 */

import {
  concatenate,
  noGrad,
  normal,
  randomBits,
  type Tensor,
  tensor,
  Variable,
  zeros,
} from "../../core/mod.ts";
import type { KVCache, LayerPrefix, Module, PromptHost } from "../../nn/mod.ts";
import { rowsOf } from "./adapter.ts";
import type { ResolvedPromptConfig } from "./config.ts";

/** How a prefix starts. */
export type PrefixStart = "text" | "random" | "zero";

/** A decoder, which a prompt can be made for by running it. */
export interface PromptDecoder extends Module, PromptHost {
  /** i32 [B, T] -> hidden states */
  forward(ids: Tensor, options?: { cache?: KVCache }): Tensor;
  /** An empty cache. */
  createCache(batch: number, capacity: number): KVCache;
}

/** An encoder, which a prompt can be made for by running it. */
export interface PromptEncoderModel extends Module, PromptHost {
  /** What each layer has for the tokens i32 [B, T], without a prompt. */
  keysAndValues(ids: Tensor): LayerPrefix[];
}

/** A head on a decoder. */
export interface PromptDecoderHead extends Module, PromptHost {
  /** The decoder. */
  decoder(): PromptDecoder;
}

/** A model that a prompt can be made for. */
export type PromptModel = PromptDecoder | PromptDecoderHead | PromptEncoderModel;

/** Exactly `count` tokens: the first of those given, or all of them again and again. */
export function fitTokens(tokens: ArrayLike<number>, count: number, vocab: number): number[] {
  const wrong = Array.from(tokens).find((id) => !Number.isInteger(id) || id < 0 || id >= vocab);
  if (tokens.length === 0 || wrong !== undefined) {
    throw new RangeError(
      `injectPrompt: needs tokens in [0, ${vocab}), got ${wrong === undefined ? "none" : wrong}`,
    );
  }
  return Array.from({ length: count }, (_, i) => tokens[i % tokens.length]);
}

/** The first vectors of prompt tuning, [n, hidden]. */
export function startVectors(
  model: PromptModel,
  config: ResolvedPromptConfig,
  tokens?: ArrayLike<number>,
): Tensor {
  const n = config.num_virtual_tokens;
  const init = config.prompt_tuning_init;
  if (init !== "TEXT" && tokens) {
    throw new TypeError(
      `injectPrompt: tokens are the start of prompt_tuning_init "TEXT", and it is "${init}"`,
    );
  }
  if (init === "RANDOM") return normal([n, config.token_dim]);
  const { weight } = model.inputEmbedding();
  const [vocab] = weight.shape;
  let ids: Tensor;
  if (init === "SAMPLE_VOCAB") ids = randomBits([n]).rem(vocab).to("i32");
  else if (tokens) ids = tensor(Int32Array.from(fitTokens(tokens, n, vocab)));
  else {
    throw new TypeError(
      'injectPrompt: prompt_tuning_init "TEXT" needs the option tokens: what the tokenizer makes of ' +
        "prompt_tuning_init_text",
    );
  }
  return noGrad(() => weight.take(ids).to("f32"));
}

/** The first rows of a prefix without projection, [n, 2·L·Hkv·D]. */
export async function startPrefix(
  model: PromptModel,
  config: ResolvedPromptConfig,
  start: PrefixStart,
  tokens?: ArrayLike<number>,
): Promise<Tensor> {
  const { num_virtual_tokens: n, num_layers: layers, token_dim: d } = config;
  const shape = [n, 2 * layers * d];
  if (start === "zero") return zeros(shape);
  if (start === "random") return normal(shape);
  if (!tokens) {
    throw new TypeError(
      "injectPrompt: a prefix starts from the keys and values of a text: give its tokens (some of the " +
        'training text will do), or start: "zero" or "random", which learn worse',
    );
  }
  const [vocab] = model.inputEmbedding().weight.shape;
  return await keysAndValues(model, fitTokens(tokens, n, vocab));
}

/**
 * What each block of `model`, without its prompt, has for the tokens: keys after rotary positions, and
 * values, as rows of a prefix, [T, 2·L·Hkv·D].
 */
export async function keysAndValues(
  model: PromptModel,
  tokens: readonly number[],
): Promise<Tensor> {
  if ("decoder" in model) return await keysAndValues(model.decoder(), tokens);
  const { prompt } = model;
  const modes = model.modules().map((module) => [module, module.training] as const);
  model.prompt = null;
  const cache = "createCache" in model ? model.createCache(1, tokens.length) : null;
  try {
    model.eval(); // dropout has no part in it
    const rows = noGrad(() => {
      const ids = tensor(Int32Array.from(tokens), { shape: [1, tokens.length] });
      const parts = cache ? cached(model as PromptDecoder, ids, cache) : read(model, ids);
      return new Variable(concatenate(rowsOf(parts), 1)); // [T, 2·L·Hkv·D]
    });
    // Before the cache goes; on `meta` there is nothing to run.
    if (rows.device.backend) await rows.device.flush();
    return rows;
  } finally {
    cache?.dispose();
    model.prompt = prompt;
    for (const [module, training] of modes) module.training = training;
  }
}

/** Keys and values of each block in turn, [1, Hkv, T, D], as a pass leaves them in the cache. */
function cached(model: PromptDecoder, ids: Tensor, cache: KVCache): Tensor[] {
  model.forward(ids, { cache });
  return cache.keys.flatMap((keys, i): Tensor[] => [keys, cache.values[i]]);
}

/** The same of an encoder. */
function read(model: PromptModel, ids: Tensor): Tensor[] {
  return (model as PromptEncoderModel).keysAndValues(ids)
    .flatMap(({ keys, values }) => [keys, values]);
}

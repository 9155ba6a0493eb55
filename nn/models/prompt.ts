/**
 * What a model needs to take a soft prompt: vectors before its input, or keys and values before those
 * of every block. The methods that train them are in `peft`.
 *
 * @module
 */

import { checkpoint, concatenate, type Tensor } from "../../core/mod.ts";
import type { Embedding } from "../embedding.ts";
import { Adapter } from "../module.ts";

/** Keys and values that stand before those of a block, both [1, Hkv, n, D]: every row has the same. */
export interface LayerPrefix {
  /** Keys as attention takes them: after rotary positions. */
  readonly keys: Tensor;
  /** The values beside them. */
  readonly values: Tensor;
}

/** What stands before the tokens of every row in one pass; positions of tokens begin after it. */
export interface PromptPass {
  /** Virtual tokens: n. */
  readonly length: number;
  /** Vectors that go in before those of the tokens: [n, hidden]. */
  readonly embeddings?: Tensor;
  /** For each block what goes before its keys and values. */
  readonly layers?: readonly LayerPrefix[];
}

/** A trained prompt: what a model asks before each pass. */
export abstract class SoftPrompt extends Adapter {
  /** Virtual tokens of what is active; 0 where nothing is. */
  abstract get length(): number;
  /** What goes before the tokens, or null where nothing is active. */
  abstract pass(): PromptPass | null;
}

/** The sizes of a model that a prompt is made for. */
export interface PromptSizes {
  /** Size of an input vector. */
  readonly hidden: number;
  /** Blocks. */
  readonly layers: number;
  /** Heads of queries. */
  readonly queryHeads: number;
  /** Heads of keys and values: with grouped queries fewer. */
  readonly heads: number;
  /** Size of a head. */
  readonly headDim: number;
  /** Longest sequence, virtual tokens among it. */
  readonly positions: number;
}

/** A model that takes a soft prompt. */
export interface PromptHost {
  /** The prompt, or null. Not part of `stateDict()`. */
  prompt: SoftPrompt | null;
  /** Sizes that a prompt has to fit. */
  promptSizes(): PromptSizes;
  /** The table of token vectors. */
  inputEmbedding(): Embedding;
}

/** The prompt's vectors before those of the tokens: x [B, T, hidden] -> [B, n + T, hidden]. */
export function withEmbeddings(x: Tensor, prompt: PromptPass): Tensor {
  const [b, , size] = x.shape;
  const rows = prompt.embeddings!.to(x.dtype).expand(b, prompt.length, size);
  return concatenate([rows, x], 1);
}

/**
 * `mask`, [.., .., T or 1, seen or 1], with `queries` virtual tokens before the T, and `keys` before the
 * `seen`, that all may see.
 */
export function widenMask(mask: Tensor, queries: number, keys: number, seen: number): Tensor {
  const [b, h, t, k] = [...Array<number>(4 - mask.rank).fill(1), ...mask.shape];
  // A key that is stretched would hide the virtual tokens with the others.
  let wide = mask.reshape(b, h, t, k).expand(b, h, t, seen).pad(3, keys, 0, 1);
  // One row for all queries stays one: what virtual tokens see, they see causally.
  if (t > 1) wide = wide.pad(2, queries, 0, 1);
  return wide;
}

/**
 * Refuses padding that stands between a prompt and a row's tokens where a window would be spent on it.
 *
 * `windows` are those of the blocks, 0 for none; `positions` those of `t` tokens a row, of which the
 * first would be `seen` without padding; `keys` is how many keys there can be.
 */
export function checkWindows(
  what: string,
  windows: readonly number[],
  { positions, t, seen, keys }: {
    readonly positions: Int32Array<ArrayBuffer>;
    readonly t: number;
    readonly seen: number;
    readonly keys: number;
  },
): void {
  const window = Math.min(...windows.filter((w) => w > 0));
  const padded = positions.some((p, i) => i % t === t - 1 && p !== seen + t - 1);
  if (window < keys && padded) {
    throw new RangeError(
      `${what}: padding stands between the soft prompt and the tokens, and a window of ${window} ` +
        `over up to ${keys} keys would count it; give rows without padding, of one length`,
    );
  }
}

/**
 * Runs a block on x; where `again`, it is run again in backward rather than held. What a checkpoint
 * differentiates by it is given, so that the prefix's gradient leaves each block once.
 */
export function runBlock(
  block: (x: Tensor, prefix?: LayerPrefix) => Tensor,
  x: Tensor,
  prefix: LayerPrefix | undefined,
  again: boolean,
): Tensor {
  if (!again) return block(x, prefix);
  if (!prefix) return checkpoint((h: Tensor) => block(h), x);
  return checkpoint(
    (h: Tensor, keys: Tensor, values: Tensor) => block(h, { keys, values }),
    x,
    prefix.keys,
    prefix.values,
  );
}

/**
 * Checks of rows of tokens that losses share.
 *
 * @module
 */

import type { CausalLM } from "../nn/mod.ts";

/** What rows have to fit: a part of a model's configuration. */
export interface RowLimits {
  /** Longest sequence, in tokens. */
  readonly max_position_embeddings: number;
  /** Tokens in the vocabulary. */
  readonly vocab_size: number;
}

/** What rows of a model have to fit: a soft prompt takes its tokens off the context. */
export function rowLimits({ config, prompt }: CausalLM): RowLimits {
  return {
    vocab_size: config.vocab_size,
    max_position_embeddings: config.max_position_embeddings - (prompt?.length ?? 0),
  };
}

/**
 * Throws a `RangeError` where a row is longer than the context, or has a token that is not in the
 * vocabulary. `name` says what a row is, such as "the chosen answer of pair".
 */
export function checkTokens(
  what: string,
  name: string,
  rows: readonly ArrayLike<number>[],
  { max_position_embeddings: longest, vocab_size: vocab }: RowLimits,
): void {
  rows.forEach((row, b) => {
    if (row.length > longest) {
      throw new RangeError(
        `${what}: ${name} ${b} is of ${row.length} tokens with its prompt, and the model's context ` +
          `of ${longest}; shorten the prompt or leave it out`,
      );
    }
    for (let i = 0; i < row.length; i++) {
      const id = row[i];
      if (!(Number.isInteger(id) && id >= 0 && id < vocab)) {
        throw new RangeError(`${what}: ${name} ${b} needs tokens in [0, ${vocab}), got ${id}`);
      }
    }
  });
}

/**
 * Throws a `RangeError` where the value of an option is not above 0, or not finite.
 */
export function checkAbove0(what: string, name: string, value: number): void {
  if (!(value > 0 && value < Infinity)) {
    throw new RangeError(`${what}: ${name} must be above 0, got ${value}`);
  }
}

/**
 * Text, tokenizers and batches. Stands on its own: batches are plain arrays.
 *
 * @module
 */

export * from "./stories15m.ts";
export * from "./tokenizer.ts";

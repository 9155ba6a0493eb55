/**
 * Keys and values of positions already seen.
 *
 * @module
 */

import { Variable, zeros } from "../../core/mod.ts";

/** Sizes of a {@linkcode KVCache}. */
export interface KVCacheOptions {
  /** Blocks of the model. */
  readonly layers: number;
  /** Rows decoded together. */
  readonly batch: number;
  /** Heads of keys and values. */
  readonly heads: number;
  /** Positions there is room for. */
  readonly capacity: number;
  /** Size of a head. */
  readonly headDim: number;
  /** Virtual tokens of a prompt that stand before, beyond the capacity. Default 0. */
  readonly lead?: number;
}

/**
 * The keys and values of each layer, [B, Hkv, lead + capacity, D], written in place as positions
 * come, so that a decoding step is the same plan at every position.
 */
export class KVCache {
  /** The keys: one variable a layer, [B, Hkv, lead + capacity, D]. */
  readonly keys: Variable[];
  /** The values: one variable a layer, [B, Hkv, lead + capacity, D]. */
  readonly values: Variable[];
  /** Rows decoded together. */
  readonly batch: number;
  /** Positions there is room for. */
  readonly capacity: number;
  /** Virtual tokens that stand before the first position: written with it. */
  readonly lead: number;
  /** Positions written so far, virtual ones not counted. */
  length = 0;

  /** An empty cache on the current device. */
  constructor({ layers, batch, heads, capacity, headDim, lead = 0 }: KVCacheOptions) {
    this.batch = batch;
    this.capacity = capacity;
    this.lead = lead;
    const make = (): Variable[] =>
      Array.from(
        { length: layers },
        () => new Variable(zeros([batch, heads, lead + capacity, headDim])),
      );
    this.keys = make();
    this.values = make();
  }

  /** Forgets all positions; the memory stays. */
  reset(): void {
    this.length = 0;
  }

  /** Frees the memory. */
  dispose(): void {
    for (const variable of [...this.keys, ...this.values]) variable.dispose();
  }

  /** As {@linkcode dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * What a soft prompt trains: rows of numbers, one a virtual token, held as they are or made by a small
 * network.
 *
 * @module
 */

import { normal, type Tensor } from "../../core/mod.ts";
import {
  Adapter,
  type LayerPrefix,
  Linear,
  Module,
  Parameter,
  type PromptPass,
  type PromptSizes,
} from "../../nn/mod.ts";
import type { ResolvedPromptConfig } from "./config.ts";

/** Trained rows that start as what they are given. */
export class PromptRows extends Module {
  /** One row a virtual token: [n, width] */
  weight: Parameter;

  /** Starts as `value`, [n, width]. */
  constructor(value: Tensor) {
    super();
    this.weight = new Parameter(value);
  }
}

/** One soft prompt. Its parameters have PEFT's names. */
export abstract class PromptAdapter extends Adapter {
  /** What it was made from. */
  readonly config: ResolvedPromptConfig;
  /** Sizes of the model it is for. */
  readonly sizes: PromptSizes;

  /** For a model of these sizes. */
  constructor(config: ResolvedPromptConfig, sizes: PromptSizes) {
    super();
    this.config = config;
    this.sizes = sizes;
  }

  /** What a file holds: [n, hidden], or for a prefix [n, 2·L·Hkv·D]. */
  abstract rows(): Tensor;

  /** What goes before the tokens. */
  pass(): PromptPass {
    const rows = this.rows();
    const { num_virtual_tokens: length, peft_type } = this.config;
    return peft_type === "PREFIX_TUNING"
      ? { length, layers: layersOf(rows, this.sizes) }
      : { length, embeddings: rows };
  }
}

/** Rows that are trained as they are: prompt tuning, a prefix without projection, what a file holds. */
export class PromptTable extends PromptAdapter {
  /** The rows, [n, width] */
  embedding: PromptRows;

  /** Starts as `value`, [n, width]. */
  constructor(config: ResolvedPromptConfig, sizes: PromptSizes, value: Tensor) {
    super(config, sizes);
    this.embedding = new PromptRows(value);
  }

  /** [n, width] */
  override rows(): Tensor {
    return this.embedding.weight;
  }
}

/** A prefix made from vectors by two linear layers with tanh between. */
export class PrefixProjection extends PromptAdapter {
  /** The vectors, [n, d] with d the size of a block's keys */
  embedding: PromptRows;
  /** From d to the inner size, and from there to 2·L·d */
  transform: Linear[];

  /** Fresh weights, as PyTorch's; with init_weights "zero" the second layer's are 0. */
  constructor(config: ResolvedPromptConfig, sizes: PromptSizes) {
    super(config, sizes);
    const { token_dim: d, num_virtual_tokens: n } = config;
    const inner = config.encoder_hidden_size as number, width = 2 * sizes.layers * d;
    this.embedding = new PromptRows(normal([n, d]));
    this.transform = [
      new Linear(d, inner),
      config.init_weights === "zero" ? Linear.zero(inner, width, true) : new Linear(inner, width),
    ];
  }

  /** [n, d] -> [n, inner] -> [n, 2·L·d] */
  override rows(): Tensor {
    const [up, out] = this.transform;
    return out.forward(up.forward(this.embedding.weight).tanh());
  }
}

/** P-tuning v1's encoder: vectors through three linear layers with ReLU between. */
export class PromptEncoder extends PromptAdapter {
  /** The vectors, [n, hidden] */
  embedding: PromptRows;
  /** From hidden to the inner size, within it, and back */
  mlp_head: Linear[];

  /** Fresh weights, as PyTorch's. */
  constructor(config: ResolvedPromptConfig, sizes: PromptSizes) {
    super(config, sizes);
    const { token_dim: d, num_virtual_tokens: n } = config;
    const inner = config.encoder_hidden_size as number;
    this.embedding = new PromptRows(normal([n, d]));
    this.mlp_head = [new Linear(d, inner), new Linear(inner, inner), new Linear(inner, d)];
  }

  /** [n, hidden] -> [n, inner] -> [n, inner] -> [n, hidden] */
  override rows(): Tensor {
    const [first, second, out] = this.mlp_head;
    const inner = first.forward(this.embedding.weight).relu();
    return out.forward(second.forward(inner).relu());
  }
}

/** Rows of a prefix, [n, 2·L·Hkv·D], as each block's keys and values, [1, Hkv, n, D]. */
export function layersOf(rows: Tensor, { layers, heads, headDim }: PromptSizes): LayerPrefix[] {
  const n = rows.shape[0];
  const parts = rows.reshape(n, 2 * layers, heads, headDim).permute(1, 2, 0, 3); // [2L, Hkv, n, D]
  return Array.from({ length: layers }, (_, i) => ({
    keys: parts.slice(0, 2 * i, 2 * i + 1),
    values: parts.slice(0, 2 * i + 1, 2 * i + 2),
  }));
}

/** The other way round: {@linkcode layersOf}'s argument from its result. */
export function rowsOf(parts: readonly Tensor[]): Tensor[] {
  return parts.map((part) => { // [1, Hkv, n, D] -> [n, Hkv·D]
    const [, heads, n, d] = part.shape;
    return part.squeeze(0).permute(1, 0, 2).reshape(n, heads * d);
  });
}

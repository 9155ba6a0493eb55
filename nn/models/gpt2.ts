/**
 * GPT-2 (Radford et al. 2019), under the names of Hugging Face: a field's path is its checkpoint key.
 *
 * @module
 */

import { normal, type Tensor, tensor } from "../../core/mod.ts";
import { activation } from "../activations.ts";
import { Dropout } from "../dropout.ts";
import { Embedding } from "../embedding.ts";
import { Conv1D, Linear } from "../linear.ts";
import { Module } from "../module.ts";
import { LayerNorm } from "../norm.ts";
import { KVCache } from "./cache.ts";
import {
  checkAbsent,
  checkHeads,
  checkModelType,
  checkProbabilities,
  checkSizes,
} from "./checks.ts";
import {
  causalAttention,
  CausalLM,
  type ForwardOptions,
  passSizes,
  splitHeads,
} from "./decoder.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";
import { type LayerPrefix, type PromptSizes, runBlock, withEmbeddings } from "./prompt.ts";

/** Sizes and settings of a GPT-2; the names are those of `config.json`. */
export interface GPT2Config {
  /** Tokens in the vocabulary. */
  readonly vocab_size: number;
  /** Size of the hidden states. */
  readonly n_embd: number;
  /** Blocks. */
  readonly n_layer: number;
  /** Heads of attention. */
  readonly n_head: number;
  /** Inner size of the feed-forward layers; default: 4 · n_embd. */
  readonly n_inner?: number | null;
  /** Longest sequence. Default 1024. */
  readonly n_positions?: number;
  /** Between the feed-forward layers. Default "gelu_new". */
  readonly activation_function?: string;
  /** Dropout before the residuals. Default 0.1. */
  readonly resid_pdrop?: number;
  /** Dropout of the embeddings. Default 0.1. */
  readonly embd_pdrop?: number;
  /** Dropout of attention's weights. Default 0.1. */
  readonly attn_pdrop?: number;
  /** Default 1e-5. */
  readonly layer_norm_epsilon?: number;
  /** Standard deviation of a fresh model's weights. Default 0.02. */
  readonly initializer_range?: number;
  /** Whether scores are divided by √D. Default true. */
  readonly scale_attn_weights?: boolean;
  /** Whether they are divided by the layer's number, from 1, too. Default false. */
  readonly scale_attn_by_inverse_layer_idx?: boolean;
  /** Whether the output layer is the embedding. Default true. */
  readonly tie_word_embeddings?: boolean;
  /** The tokens that end a text: generation stops there. */
  readonly eos_token_id?: number | readonly number[] | null;
  /** What else `config.json` holds. */
  readonly [key: string]: unknown;
}

/** A configuration with nothing left open, and the longest sequence under the name other models have. */
export type ResolvedGPT2Config =
  & GPT2Config
  & {
    readonly n_inner: number;
    /** As n_positions. */
    readonly max_position_embeddings: number;
  }
  & Required<
    Pick<
      GPT2Config,
      | "n_positions"
      | "activation_function"
      | "resid_pdrop"
      | "embd_pdrop"
      | "attn_pdrop"
      | "layer_norm_epsilon"
      | "initializer_range"
      | "scale_attn_weights"
      | "scale_attn_by_inverse_layer_idx"
      | "tie_word_embeddings"
    >
  >;

/**
 * Fills in Hugging Face's defaults and checks the sizes.
 *
 * Throws a `TypeError` or `RangeError` that names the key at fault.
 */
export function resolveGPT2Config(config: GPT2Config, source = "GPT2Config"): ResolvedGPT2Config {
  checkModelType(config.model_type, "gpt2", source);
  const positions = config.n_positions ?? 1024;
  const resolved = {
    ...config,
    n_inner: config.n_inner ?? 4 * config.n_embd,
    n_positions: positions,
    max_position_embeddings: positions,
    activation_function: config.activation_function ?? "gelu_new",
    resid_pdrop: config.resid_pdrop ?? 0.1,
    embd_pdrop: config.embd_pdrop ?? 0.1,
    attn_pdrop: config.attn_pdrop ?? 0.1,
    layer_norm_epsilon: config.layer_norm_epsilon ?? 1e-5,
    initializer_range: config.initializer_range ?? 0.02,
    scale_attn_weights: config.scale_attn_weights ?? true,
    scale_attn_by_inverse_layer_idx: config.scale_attn_by_inverse_layer_idx ?? false,
    tie_word_embeddings: config.tie_word_embeddings ?? true,
  };
  const sizes = ["vocab_size", "n_embd", "n_layer", "n_head", "n_inner", "n_positions"];
  checkSizes(resolved, sizes, source);
  checkHeads(resolved, "n_embd", "n_head", source);
  checkProbabilities(resolved, ["resid_pdrop", "embd_pdrop", "attn_pdrop"], source);
  checkAbsent(resolved, ["add_cross_attention"], source);
  activation(resolved.activation_function, `${source}: activation_function`);
  return resolved;
}

/** What every block is given in one pass. */
export interface GPT2Pass {
  /** As in {@linkcode ForwardOptions}. */
  readonly mask?: Tensor;
  /** As in {@linkcode ForwardOptions}. */
  readonly cache?: KVCache;
  /** What stands before the keys and values of the block. */
  readonly prefix?: LayerPrefix;
}

/** Multi-head attention; one layer makes queries, keys and values. */
export class GPT2Attention extends Module {
  /** Queries, keys and values, [C, 3C] */
  c_attn: Conv1D;
  /** Output, [C, C] */
  c_proj: Conv1D;
  /** Before the residual. */
  resid_dropout: Dropout;
  readonly #config: ResolvedGPT2Config;
  readonly #layer: number;

  /** That of layer `layer`. */
  constructor(config: ResolvedGPT2Config, layer: number) {
    super();
    const { n_embd: size } = config;
    this.c_attn = new Conv1D(size, 3 * size);
    this.c_proj = new Conv1D(size, size);
    this.resid_dropout = new Dropout(config.resid_pdrop);
    this.#config = config;
    this.#layer = layer;
  }

  /** [B, T, C] -> [B, T, C] */
  forward(x: Tensor, { mask, cache, prefix }: GPT2Pass): Tensor {
    const { n_embd: size, n_head: h, attn_pdrop } = this.#config;
    const joined = this.c_attn.forward(x); // [B, T, 3C]
    const [q, k, v] = [0, 1, 2].map((i) => splitHeads(joined.slice(2, i * size, (i + 1) * size), h) // [B, H, T, D]
    );
    let scale = this.#config.scale_attn_weights ? Math.sqrt(h / size) : 1;
    if (this.#config.scale_attn_by_inverse_layer_idx) scale /= this.#layer + 1;
    const dropout = this.training ? attn_pdrop : 0;
    const y = causalAttention(q, k, v, this.#layer, cache, { mask, prefix, scale, dropout });
    return this.resid_dropout.forward(this.c_proj.forward(y));
  }
}

/** The feed-forward layer. */
export class GPT2MLP extends Module {
  /** [C, inner] */
  c_fc: Conv1D;
  /** [inner, C] */
  c_proj: Conv1D;
  /** Before the residual. */
  dropout: Dropout;
  readonly #act: (x: Tensor) => Tensor;

  /** Fresh weights. */
  constructor(config: ResolvedGPT2Config) {
    super();
    this.c_fc = new Conv1D(config.n_embd, config.n_inner);
    this.c_proj = new Conv1D(config.n_inner, config.n_embd);
    this.dropout = new Dropout(config.resid_pdrop);
    this.#act = activation(config.activation_function);
  }

  /** [B, T, C] -> [B, T, C] */
  forward(x: Tensor): Tensor {
    const inner = this.#act(this.c_fc.forward(x)); // [B, T, inner]
    return this.dropout.forward(this.c_proj.forward(inner));
  }
}

/** One block: attention and feed-forward, each after a norm and around a residual. */
export class GPT2Block extends Module {
  /** Before attention. */
  ln_1: LayerNorm;
  /** Attention. */
  attn: GPT2Attention;
  /** Before feed-forward. */
  ln_2: LayerNorm;
  /** Feed-forward. */
  mlp: GPT2MLP;

  /** Number `layer`, from 0. */
  constructor(config: ResolvedGPT2Config, layer: number) {
    super();
    this.ln_1 = new LayerNorm(config.n_embd, config.layer_norm_epsilon);
    this.attn = new GPT2Attention(config, layer);
    this.ln_2 = new LayerNorm(config.n_embd, config.layer_norm_epsilon);
    this.mlp = new GPT2MLP(config);
  }

  /** [B, T, C] -> [B, T, C] */
  forward(x: Tensor, pass: GPT2Pass): Tensor {
    const h = x.add(this.attn.forward(this.ln_1.forward(x), pass));
    return h.add(this.mlp.forward(this.ln_2.forward(h)));
  }
}

/** Embeddings, blocks and final norm. */
export class GPT2Model extends Module {
  /** Of tokens, [V, C] */
  wte: Embedding;
  /** Of positions, [n_positions, C] */
  wpe: Embedding;
  /** Of the embeddings. */
  drop: Dropout;
  /** The blocks, in order. */
  h: GPT2Block[];
  /** After the last block. */
  ln_f: LayerNorm;
  /** Whether blocks are computed again in backward rather than held: less memory, more time. */
  gradientCheckpointing = false;
  readonly #longest: number;

  /** Fresh weights. */
  constructor(config: ResolvedGPT2Config) {
    super();
    this.#longest = config.n_positions;
    this.wte = new Embedding(config.vocab_size, config.n_embd);
    this.wpe = new Embedding(config.n_positions, config.n_embd);
    this.drop = new Dropout(config.embd_pdrop);
    this.h = Array.from({ length: config.n_layer }, (_, i) => new GPT2Block(config, i));
    this.ln_f = new LayerNorm(config.n_embd, config.layer_norm_epsilon);
  }

  /**
   * i32 [B, T] -> [B, T, C].
   *
   * Throws a `RangeError` where ids are not [B, T], the cache has no room for T more positions, or a
   * position is not in [0, n_positions).
   */
  forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    const { cache } = options;
    const sizes = passSizes("GPT2Model", ids, options);
    const { b, t, before, positions, mask, inserted, prefix } = sizes;
    const at = positions ?? Int32Array.from({ length: t }, (_, i) => before + i);
    for (const position of at) {
      if (position < 0 || position >= this.#longest) {
        throw new RangeError(
          `GPT2Model: needs positions below n_positions, ${this.#longest}, got ${position}`,
        );
      }
    }
    const places = tensor(at, { shape: positions ? [b, t] : [t] });
    let x = this.wte.forward(ids); // [B, T, C]
    if (inserted) x = withEmbeddings(x, inserted); // [B, n + T, C]
    x = this.drop.forward(x.add(this.wpe.forward(places))); // + [T, C] or [B, T, C]
    const again = this.gradientCheckpointing && this.training && !cache;
    this.h.forEach((layer, i) => {
      x = runBlock((h, prefix) => layer.forward(h, { mask, cache, prefix }), x, prefix?.[i], again);
    });
    if (cache) cache.length += ids.shape[1];
    if (inserted) x = x.slice(1, inserted.length); // the tokens' own, [B, T, C]
    return this.ln_f.forward(x);
  }
}

/**
 * GPT-2 with its output layer: next-token logits, loss, and what generation needs.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { GPT2LMHeadModel } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new GPT2LMHeadModel({ vocab_size: 50, n_embd: 16, n_layer: 1, n_head: 2 });
 * const ids = tensor([[1, 2, 3, 4]], { dtype: "i32" });
 * console.log(model.logits(model.forward(ids)).shape); // [1, 4, 50]
 * ```
 */
export class GPT2LMHeadModel extends CausalLM {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = {
    architecture: "GPT2LMHeadModel",
    modelType: "gpt2",
    base: "transformer",
    // Causal masks, which older files hold.
    ignored: /\.attn\.(masked_)?bias$/,
    checkConfig: (config, source) => {
      resolveGPT2Config(config as unknown as GPT2Config, source);
    },
  };

  /** All but the output layer. */
  transformer: GPT2Model;
  /** [V, C] */
  override lm_head: Linear;
  readonly #config: ResolvedGPT2Config;

  /**
   * Fresh weights, N(0, initializer_range); those before a residual are smaller the more blocks there
   * are (section 2.3).
   *
   * Throws a `TypeError` or `RangeError` that names the setting at fault.
   */
  constructor(config: GPT2Config) {
    super(config);
    const resolved = resolveGPT2Config(config);
    this.#config = resolved;
    this.transformer = new GPT2Model(resolved);
    this.lm_head = new Linear(resolved.n_embd, resolved.vocab_size, {
      bias: false,
      weight: resolved.tie_word_embeddings ? this.transformer.wte.weight : undefined,
    });
    this.initialize(resolved.initializer_range);
    const std = resolved.initializer_range / Math.sqrt(2 * resolved.n_layer);
    for (const { attn, mlp } of this.transformer.h) {
      for (const { weight } of [attn.c_proj, mlp.c_proj]) {
        weight.assign(normal(weight.shape, { std }));
      }
    }
  }

  /** The configuration, defaults filled in. */
  override get config(): ResolvedGPT2Config {
    return this.#config;
  }

  /** i32 [B, T] -> the last hidden states, [B, T, C]. */
  override forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return this.transformer.forward(ids, this.prompted(ids, options));
  }

  /** Sizes that a soft prompt has to fit. */
  override promptSizes(): PromptSizes {
    const { n_embd, n_layer, n_head, n_positions } = this.#config;
    return {
      hidden: n_embd,
      layers: n_layer,
      queryHeads: n_head,
      heads: n_head,
      headDim: n_embd / n_head,
      positions: n_positions,
    };
  }

  /** The table of token vectors. */
  override inputEmbedding(): Embedding {
    return this.transformer.wte;
  }

  /** An empty cache for `batch` rows of up to `capacity` positions. */
  override createCache(batch: number, capacity: number): KVCache {
    const { n_layer, n_head, n_embd } = this.#config;
    return new KVCache({
      layers: n_layer,
      batch,
      heads: n_head,
      capacity,
      headDim: n_embd / n_head,
      lead: this.prompt?.length,
    });
  }
}

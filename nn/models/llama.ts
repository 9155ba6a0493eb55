/**
 * Llama (Touvron et al. 2023; Dubey et al. 2024), under the names of Hugging Face: a field's path is
 * its checkpoint key.
 *
 * @module
 */

import { rope, swiglu, type Tensor, tensor, Variable } from "../../core/mod.ts";
import { Embedding } from "../embedding.ts";
import { Linear } from "../linear.ts";
import { Module } from "../module.ts";
import { RMSNorm } from "../norm.ts";
import { KVCache } from "./cache.ts";
import {
  causalAttention,
  CausalLM,
  type ForwardOptions,
  passSizes,
  splitHeads,
} from "./decoder.ts";
import {
  type LlamaConfig,
  type LlamaFamily,
  llamaFamily,
  type ResolvedLlamaConfig,
  resolveLlamaConfig,
  ropeFrequencies,
} from "./llama_config.ts";
import type { PretrainedInfo } from "./pretrained_model.ts";
import {
  checkWindows,
  type LayerPrefix,
  type PromptSizes,
  runBlock,
  withEmbeddings,
} from "./prompt.ts";

/** What every layer shares in one pass. */
export interface LlamaPass {
  /** Cosines of the rotary angles, [T, D/2] or [B, 1, T, D/2]. */
  readonly cos: Tensor;
  /** Their sines. */
  readonly sin: Tensor;
  /** As in {@linkcode ForwardOptions}. */
  readonly mask?: Tensor;
  /** As in {@linkcode ForwardOptions}. */
  readonly cache?: KVCache;
  /** What stands before the keys and values of the block. */
  readonly prefix?: LayerPrefix;
}

/** Multi-head attention with rotary positions and grouped queries. */
export class LlamaAttention extends Module {
  /** Queries: [H·D, hidden] */
  q_proj: Linear;
  /** Keys: [Hkv·D, hidden] */
  k_proj: Linear;
  /** Values: [Hkv·D, hidden] */
  v_proj: Linear;
  /** Output: [hidden, H·D] */
  o_proj: Linear;
  /** Norm of each head of queries, [D]; null except in Qwen3. */
  q_norm: RMSNorm | null;
  /** Norm of each head of keys, [D]; null except in Qwen3. */
  k_norm: RMSNorm | null;
  readonly #config: ResolvedLlamaConfig;
  readonly #layer: number;

  /** That of layer `layer`. */
  constructor(config: ResolvedLlamaConfig, layer: number) {
    super();
    const { hidden_size: size, head_dim: d, traits } = config;
    const heads = config.num_attention_heads * d, kvHeads = config.num_key_value_heads * d;
    this.q_proj = new Linear(size, heads, { bias: traits.inputBias });
    this.k_proj = new Linear(size, kvHeads, { bias: traits.inputBias });
    this.v_proj = new Linear(size, kvHeads, { bias: traits.inputBias });
    this.o_proj = new Linear(heads, size, { bias: traits.outputBias });
    this.q_norm = traits.headNorms ? new RMSNorm(d, config.rms_norm_eps) : null;
    this.k_norm = traits.headNorms ? new RMSNorm(d, config.rms_norm_eps) : null;
    this.#config = config;
    this.#layer = layer;
  }

  /** [B, T, hidden] -> [B, T, hidden] */
  forward(x: Tensor, { cos, sin, mask, cache, prefix }: LlamaPass): Tensor {
    const { num_attention_heads: h, num_key_value_heads: hkv, traits } = this.#config;
    const q = splitHeads(this.q_proj.forward(x), h); // [B, H, T, D]
    const k = splitHeads(this.k_proj.forward(x), hkv); // [B, Hkv, T, D]
    const v = splitHeads(this.v_proj.forward(x), hkv);
    const y = causalAttention(
      rope(this.q_norm?.forward(q) ?? q, cos, sin),
      rope(this.k_norm?.forward(k) ?? k, cos, sin),
      v,
      this.#layer,
      cache,
      {
        mask,
        prefix,
        window: traits.windows[this.#layer],
        dropout: this.training ? this.#config.attention_dropout : 0,
      },
    );
    return this.o_proj.forward(y); // [B, T, H·D] -> [B, T, hidden]
  }
}

/** The gated feed-forward layer, SwiGLU (Shazeer 2020). */
export class LlamaMLP extends Module {
  /** The gate, which goes through SiLU: [inner, hidden] */
  gate_proj: Linear;
  /** What is gated: [inner, hidden] */
  up_proj: Linear;
  /** Output: [hidden, inner] */
  down_proj: Linear;

  /** Fresh weights. */
  constructor(config: ResolvedLlamaConfig) {
    super();
    const { hidden_size: size, intermediate_size: inner, mlp_bias: bias } = config;
    this.gate_proj = new Linear(size, inner, { bias });
    this.up_proj = new Linear(size, inner, { bias });
    this.down_proj = new Linear(inner, size, { bias });
  }

  /** [B, T, hidden] -> [B, T, hidden] */
  forward(x: Tensor): Tensor {
    const gated = swiglu(this.gate_proj.forward(x), this.up_proj.forward(x)); // [B, T, inner]
    return this.down_proj.forward(gated);
  }
}

/** One block: attention and feed-forward, each after a norm and around a residual. */
export class LlamaDecoderLayer extends Module {
  /** Attention, on what input_layernorm gives. */
  self_attn: LlamaAttention;
  /** Feed-forward, on what post_attention_layernorm gives. */
  mlp: LlamaMLP;
  /** Norm before attention. */
  input_layernorm: RMSNorm;
  /** Norm before feed-forward. */
  post_attention_layernorm: RMSNorm;

  /** Number `layer`, from 0. */
  constructor(config: ResolvedLlamaConfig, layer: number) {
    super();
    this.self_attn = new LlamaAttention(config, layer);
    this.mlp = new LlamaMLP(config);
    this.input_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
    this.post_attention_layernorm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
  }

  /** [B, T, hidden] -> [B, T, hidden] */
  forward(x: Tensor, pass: LlamaPass): Tensor {
    const h = x.add(this.self_attn.forward(this.input_layernorm.forward(x), pass));
    return h.add(this.mlp.forward(this.post_attention_layernorm.forward(h)));
  }
}

/** Embedding, blocks and final norm. */
export class LlamaModel extends Module {
  /** The vectors of the tokens: [V, hidden] */
  embed_tokens: Embedding;
  /** The blocks, in order. */
  layers: LlamaDecoderLayer[];
  /** Norm after the last block. */
  norm: RMSNorm;
  /** Whether blocks are computed again in backward rather than held: less memory, more time. */
  gradientCheckpointing = false;
  readonly #config: ResolvedLlamaConfig;
  #tables: { cos: Variable; sin: Variable; length: number } | null = null;

  /** Fresh weights. */
  constructor(config: ResolvedLlamaConfig) {
    super();
    this.#config = config;
    this.embed_tokens = new Embedding(config.vocab_size, config.hidden_size);
    this.layers = Array.from(
      { length: config.num_hidden_layers },
      (_, i) => new LlamaDecoderLayer(config, i),
    );
    this.norm = new RMSNorm(config.hidden_size, config.rms_norm_eps);
  }

  /**
   * i32 [B, T] -> [B, T, hidden].
   *
   * Throws a `RangeError` where ids are not [B, T], or the cache has no room for T more positions.
   */
  forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    const { cache } = options;
    const sizes = passSizes("LlamaModel", ids, options);
    const { b, t, before, positions, mask, inserted, prefix } = sizes;
    if (options.prompt && options.positions) {
      const [seen, tokens, lead] = [cache?.length ?? 0, ids.shape[1], options.prompt.length];
      const keys = lead + (cache?.capacity ?? tokens);
      const given = { positions: options.positions, t: tokens, seen, keys };
      checkWindows("LlamaModel", this.#config.traits.windows, given);
    }
    const pass: LlamaPass = { ...this.#rotations(b, t, before, positions), mask, cache };
    let x = this.embed_tokens.forward(ids); // [B, T, hidden]
    if (inserted) x = withEmbeddings(x, inserted); // [B, n + T, hidden]
    const again = this.gradientCheckpointing && this.training && !cache;
    this.layers.forEach((layer, i) => {
      x = runBlock((h, prefix) => layer.forward(h, { ...pass, prefix }), x, prefix?.[i], again);
    });
    if (cache) cache.length += ids.shape[1];
    if (inserted) x = x.slice(1, inserted.length); // the tokens' own, [B, T, hidden]
    return this.norm.forward(x);
  }

  /** Cosines and sines of the positions: [T, D/2], or [B, 1, T, D/2] where each row has its own. */
  #rotations(
    b: number,
    t: number,
    before: number,
    positions?: Int32Array<ArrayBuffer>,
  ): { cos: Tensor; sin: Tensor } {
    let last = before + t;
    if (positions) { for (const p of positions) if (p >= last) last = p + 1; }
    const { cos, sin } = this.#table(last);
    // A table row is named by data, not by structure: decoding is one plan at every position.
    if (before === 0 && !positions) return { cos: cos.slice(0, 0, t), sin: sin.slice(0, 0, t) };
    const at = positions ?? Int32Array.from({ length: t }, (_, i) => before + i);
    const rows = tensor(at, { shape: positions ? [b, 1, t] : [t] });
    return { cos: cos.take(rows), sin: sin.take(rows) };
  }

  /** Tables for positions below `length`, made anew when they get too short. */
  #table(length: number): { cos: Variable; sin: Variable } {
    if (this.#tables && this.#tables.length >= length) return this.#tables;
    const rows = Math.max(
      Math.min(this.#config.max_position_embeddings, 4096),
      2 ** Math.ceil(Math.log2(length)),
    );
    const frequencies = ropeFrequencies(this.#config);
    const half = frequencies.length;
    const cos = new Float32Array(rows * half), sin = new Float32Array(rows * half);
    for (let p = 0; p < rows; p++) {
      for (let i = 0; i < half; i++) {
        cos[p * half + i] = Math.cos(p * frequencies[i]);
        sin[p * half + i] = Math.sin(p * frequencies[i]);
      }
    }
    this.#tables = {
      cos: new Variable(tensor(cos, { shape: [rows, half] })),
      sin: new Variable(tensor(sin, { shape: [rows, half] })),
      length: rows,
    };
    return this.#tables;
  }
}

/**
 * Llama with its output layer: next-token logits, loss, and what generation needs.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * const model = new LlamaForCausalLM({
 *   vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *   num_hidden_layers: 1, num_attention_heads: 2,
 * });
 * const ids = tensor([[1, 2, 3, 4]], { dtype: "i32" });
 * console.log(model.logits(model.forward(ids)).shape); // [1, 4, 50]
 * ```
 */
export class LlamaForCausalLM extends CausalLM {
  /** Its checkpoints. */
  static readonly pretrained: PretrainedInfo = llamaInfo("LlamaForCausalLM", llamaFamily);

  /** All but the output layer. */
  model: LlamaModel;
  /** Output layer, [V, hidden]; its weight is the embedding's where they are tied. */
  override lm_head: Linear;
  readonly #config: ResolvedLlamaConfig;

  /**
   * Fresh weights, N(0, initializer_range), as Hugging Face's. On `meta`: shapes alone.
   *
   * Throws a `TypeError` or `RangeError` that names the setting at fault.
   */
  constructor(config: LlamaConfig, family: LlamaFamily = llamaFamily) {
    super(config);
    const resolved = resolveLlamaConfig(config, "LlamaConfig", family);
    this.#config = resolved;
    this.model = new LlamaModel(resolved);
    this.lm_head = new Linear(resolved.hidden_size, resolved.vocab_size, {
      bias: false,
      weight: resolved.tie_word_embeddings ? this.model.embed_tokens.weight : undefined,
    });
    this.initialize(resolved.initializer_range);
  }

  /** The configuration, defaults filled in. */
  override get config(): ResolvedLlamaConfig {
    return this.#config;
  }

  /** i32 [B, T] -> the last hidden states, [B, T, hidden]. */
  override forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return this.model.forward(ids, this.prompted(ids, options));
  }

  /** Sizes that a soft prompt has to fit. */
  override promptSizes(): PromptSizes {
    const config = this.#config;
    return {
      hidden: config.hidden_size,
      layers: config.num_hidden_layers,
      queryHeads: config.num_attention_heads,
      heads: config.num_key_value_heads,
      headDim: config.head_dim,
      positions: config.max_position_embeddings,
    };
  }

  /** The table of token vectors. */
  override inputEmbedding(): Embedding {
    return this.model.embed_tokens;
  }

  /** An empty cache for `batch` rows of up to `capacity` positions. */
  override createCache(batch: number, capacity: number): KVCache {
    const { num_hidden_layers, num_key_value_heads, head_dim } = this.#config;
    return new KVCache({
      layers: num_hidden_layers,
      batch,
      heads: num_key_value_heads,
      capacity,
      headDim: head_dim,
      lead: this.prompt?.length,
    });
  }
}

/** What a relative's class says of its checkpoints. */
export function llamaInfo(architecture: string, family: LlamaFamily): PretrainedInfo {
  return {
    architecture,
    modelType: family.modelType,
    base: "model",
    // Old files hold the rotary frequencies, which follow from the configuration.
    ignored: /\.rotary_emb\.inv_freq$/,
    checkConfig: (config, source) => {
      resolveLlamaConfig(config as unknown as LlamaConfig, source, family);
    },
  };
}

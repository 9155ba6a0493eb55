/**
 * Llama (Touvron et al. 2023; Dubey et al. 2024), under the names of Hugging Face: a field's path is
 * its checkpoint key.
 *
 * @module
 */

import {
  attention,
  checkpoint,
  crossEntropy,
  linearCrossEntropy,
  normal,
  rope,
  type Tensor,
  tensor,
  Variable,
  zeros,
} from "../../core/mod.ts";
import { Embedding } from "../embedding.ts";
import { Linear } from "../linear.ts";
import { Module } from "../module.ts";
import { RMSNorm } from "../norm.ts";
import { KVCache } from "./cache.ts";
import {
  type LlamaConfig,
  type ResolvedLlamaConfig,
  resolveLlamaConfig,
  ropeFrequencies,
} from "./llama_config.ts";
import { pretrainedConfig, weightFiles } from "./pretrained.ts";

/** Options of a forward pass. */
export interface ForwardOptions {
  /** Position of each token, [B, T]; default: 0, 1, ... from the cache's length on. */
  readonly positions?: Int32Array<ArrayBuffer>;
  /** bool, broadcastable to [B, H, T, keys]: true where a key may be attended to. */
  readonly mask?: Tensor;
  /** Keys and values of earlier positions; those of this pass are added. */
  readonly cache?: KVCache;
}

/**
 * A batch of next-token prediction, as tensors or as a data loader gives it: inputs i32 [B, T], and
 * targets [B, T], the token after each input, -100 where it does not count.
 */
export type LanguageBatch =
  | { readonly inputs: Tensor; readonly targets: Tensor }
  | {
    readonly inputs: Int32Array<ArrayBuffer>;
    readonly targets: Int32Array<ArrayBuffer>;
    readonly shape: readonly [batch: number, sequence: number];
  };

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
  readonly #config: ResolvedLlamaConfig;
  readonly #layer: number;

  /** That of layer `layer`. */
  constructor(config: ResolvedLlamaConfig, layer: number) {
    super();
    const { hidden_size: size, head_dim: d, attention_bias: bias } = config;
    const heads = config.num_attention_heads * d, kvHeads = config.num_key_value_heads * d;
    this.q_proj = new Linear(size, heads, { bias });
    this.k_proj = new Linear(size, kvHeads, { bias });
    this.v_proj = new Linear(size, kvHeads, { bias });
    this.o_proj = new Linear(heads, size, { bias });
    this.#config = config;
    this.#layer = layer;
  }

  /** [B, T, hidden] -> [B, T, hidden] */
  forward(x: Tensor, { cos, sin, mask, cache }: LlamaPass): Tensor {
    const [b, t] = x.shape;
    const { num_attention_heads: h, num_key_value_heads: hkv, head_dim: d } = this.#config;
    const heads = (y: Tensor, n: number): Tensor => y.reshape(b, t, n, d).permute(0, 2, 1, 3);
    const q = rope(heads(this.q_proj.forward(x), h), cos, sin); // [B, H, T, D]
    let k = rope(heads(this.k_proj.forward(x), hkv), cos, sin); // [B, Hkv, T, D]
    let v = heads(this.v_proj.forward(x), hkv);
    let keys = t;
    if (cache) {
      const before = cache.length;
      keys = before + t;
      k = cache.keys[this.#layer].update(k, 2, before); // [B, Hkv, capacity, D]
      v = cache.values[this.#layer].update(v, 2, before);
    }
    const y = attention(q, k, v, { causal: true, mask, keys }); // [B, H, T, D]
    return this.o_proj.forward(y.permute(0, 2, 1, 3).reshape(b, t, h * d));
  }
}

/** The gated feed-forward layer, SwiGLU (Shazeer 2020). */
export class LlamaMLP extends Module {
  /** [inner, hidden] */
  gate_proj: Linear;
  /** [inner, hidden] */
  up_proj: Linear;
  /** [hidden, inner] */
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
    const gated = this.gate_proj.forward(x).silu().mul(this.up_proj.forward(x)); // [B, T, inner]
    return this.down_proj.forward(gated);
  }
}

/** One block: attention and feed-forward, each after a norm and around a residual. */
export class LlamaDecoderLayer extends Module {
  /** Attention. */
  self_attn: LlamaAttention;
  /** Feed-forward. */
  mlp: LlamaMLP;
  /** Before attention. */
  input_layernorm: RMSNorm;
  /** Before feed-forward. */
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
  /** [V, hidden] */
  embed_tokens: Embedding;
  /** The blocks, in order. */
  layers: LlamaDecoderLayer[];
  /** After the last block. */
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
    if (ids.rank !== 2 || ids.size === 0) {
      throw new RangeError(`LlamaModel: needs tokens [B, T], got [${ids.shape.join(", ")}]`);
    }
    const [b, t] = ids.shape;
    const { cache, mask, positions } = options;
    const before = cache?.length ?? 0;
    if (cache && (cache.batch !== b || before + t > cache.capacity)) {
      throw new RangeError(
        `LlamaModel: the cache holds ${cache.batch} rows of ${cache.capacity} positions, of which ` +
          `${before} are taken; got tokens [${b}, ${t}]`,
      );
    }
    const pass: LlamaPass = { ...this.#rotations(b, t, before, positions), mask, cache };
    let x = this.embed_tokens.forward(ids); // [B, T, hidden]
    for (const layer of this.layers) {
      x = this.gradientCheckpointing && this.training && !cache
        ? checkpoint((h: Tensor) => layer.forward(h, pass), x)
        : layer.forward(x, pass);
    }
    if (cache) cache.length += t;
    return this.norm.forward(x);
  }

  /** Cosines and sines of the positions: [T, D/2], or [B, 1, T, D/2] where each row has its own. */
  #rotations(
    b: number,
    t: number,
    before: number,
    positions?: Int32Array<ArrayBuffer>,
  ): { cos: Tensor; sin: Tensor } {
    if (positions && positions.length !== b * t) {
      throw new RangeError(
        `LlamaModel: needs ${b * t} positions for tokens [${b}, ${t}], got ${positions.length}`,
      );
    }
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
export class LlamaForCausalLM extends Module {
  /** All but the output layer. */
  model: LlamaModel;
  /** [V, hidden] */
  lm_head: Linear;
  readonly #config: ResolvedLlamaConfig;

  /** Fresh weights, N(0, initializer_range), as Hugging Face's. On `meta`: shapes alone. */
  constructor(config: LlamaConfig) {
    super();
    const resolved = resolveLlamaConfig(config);
    this.#config = resolved;
    this.model = new LlamaModel(resolved);
    this.lm_head = new Linear(resolved.hidden_size, resolved.vocab_size, {
      bias: false,
      weight: resolved.tie_word_embeddings ? this.model.embed_tokens.weight : undefined,
    });
    for (const module of this.modules()) {
      if (!(module instanceof Linear || module instanceof Embedding)) continue;
      module.weight.assign(normal(module.weight.shape, { std: resolved.initializer_range }));
      if (module instanceof Linear) module.bias?.assign(zeros(module.bias.shape));
    }
  }

  /**
   * The model in a folder of Hugging Face's layout: `config.json` and `model.safetensors`, or the parts
   * that `model.safetensors.index.json` names. It comes in evaluation mode.
   *
   * Throws an `Error` that names the file where one is missing, or lists the keys that do not fit.
   */
  static async fromPretrained(folder: string): Promise<LlamaForCausalLM> {
    const { config, path } = await pretrainedConfig(folder);
    const model = new LlamaForCausalLM(resolveLlamaConfig(config as unknown as LlamaConfig, path));
    await model.load(await weightFiles(folder));
    return model.eval();
  }

  /** The configuration, defaults filled in. */
  get config(): ResolvedLlamaConfig {
    return this.#config;
  }

  /** i32 [B, T] -> the last hidden states, [B, T, hidden]. */
  forward(ids: Tensor, options: ForwardOptions = {}): Tensor {
    return this.model.forward(ids, options);
  }

  /** [..., hidden] -> [..., V] */
  logits(hidden: Tensor): Tensor {
    return this.lm_head.forward(hidden);
  }

  /**
   * Mean cross-entropy a target, in nats. The logits of all positions are never held at once, unless
   * the output layer is adapted.
   */
  loss(batch: LanguageBatch, options: ForwardOptions = {}): Tensor {
    const { inputs, targets } = "shape" in batch
      ? {
        inputs: tensor(batch.inputs, { shape: batch.shape }),
        targets: tensor(batch.targets, { shape: batch.shape }),
      }
      : batch;
    const hidden = this.forward(inputs, options);
    const wanted = targets.flatten(); // [B·T]
    const rows = hidden.reshape(-1, hidden.shape.at(-1)!); // [B·T, hidden]
    // An adapted or biased output layer is more than its weight.
    if (this.lm_head.constructor === Linear && !this.lm_head.bias) {
      return linearCrossEntropy(rows, this.lm_head.weight, wanted);
    }
    return crossEntropy(this.logits(rows), wanted);
  }

  /** The layer that makes logits: "all-linear" adapters leave it out. */
  outputEmbedding(): Linear {
    return this.lm_head;
  }

  /** An empty cache for `batch` rows of up to `capacity` positions. */
  createCache(batch: number, capacity: number): KVCache {
    const { num_hidden_layers, num_key_value_heads, head_dim } = this.#config;
    return new KVCache({
      layers: num_hidden_layers,
      batch,
      heads: num_key_value_heads,
      capacity,
      headDim: head_dim,
    });
  }
}

/**
 * The matrices that LoRA puts beside one layer (Hu et al. 2021), and DoRA's magnitudes (Liu et al.
 * 2024).
 *
 * @module
 */

import {
  type DType,
  embedding,
  noGrad,
  normal,
  type Tensor,
  uniform,
  type Variable,
  zeros,
} from "../core/mod.ts";
import { Adapter, Dropout, Linear, Parameter } from "../nn/mod.ts";
import type { ResolvedLoraConfig } from "./config.ts";

/** Sizes of an adapter of one layer. */
export interface PairSizes {
  /** Size of the layer's input; of an embedding, the vocabulary. */
  readonly inFeatures: number;
  /** Size of its output. */
  readonly outFeatures: number;
  /** Rank. */
  readonly r: number;
  /** α. */
  readonly alpha: number;
}

/** What an adapter needs of the layer that it stands beside. */
export interface PairBase {
  /** W as [out, in], whichever way the layer holds it. */
  matrix(): Tensor;
  /** W x, without the bias: [..., in] -> [..., out] */
  product(x: Tensor): Tensor;
}

/** An adapter of one layer: ΔW = scale · B A, with A [r, in] and B [out, r]. */
export abstract class LoraPair extends Adapter {
  /** Dropout of A's input. */
  dropout: Dropout;
  /** DoRA's length of each output row, [out]; null where DoRA is not used. */
  lora_magnitude_vector: Parameter | null = null;
  /** Factor of B A: α / r, or α / √r with use_rslora. */
  readonly scale: number;
  /** What the whole adapter was made from. */
  readonly config: ResolvedLoraConfig;
  /**
   * A and B as they started, where they started from the weight: their product is taken from the weight,
   * so that the start changes nothing and the base stays what it is.
   */
  start: { readonly a: Variable; readonly b: Variable } | null = null;
  /** Whether files hold the base's weight too, as PEFT's do of embeddings. */
  savesBase = false;

  /** Of these sizes. */
  constructor({ r, alpha }: PairSizes, config: ResolvedLoraConfig) {
    super();
    this.dropout = new Dropout(config.lora_dropout);
    this.scale = alpha / (config.use_rslora ? Math.sqrt(r) : r);
    this.config = config;
  }

  /** A, [r, in] */
  abstract get a(): Parameter;
  /** B, [out, r] */
  abstract get b(): Parameter;
  /** The parameters by PEFT's names in files. */
  abstract parts(): [string, Parameter][];
  /** scale · B A x, with its bias, and less what was there at the start: [..., in] -> [..., out] */
  protected abstract lowRank(x: Tensor): Tensor;

  /** What is added to the bias, [out], or null. */
  biasDelta(): Tensor | null {
    return null;
  }

  /** scale · (B A - B₀ A₀), [out, in], without DoRA. */
  update(): Tensor {
    const now = this.b.matmul(this.a);
    const ba = this.start ? now.sub(this.start.b.matmul(this.start.a)) : now;
    return ba.mul(this.scale);
  }

  /** ΔW, [out, in]: what merging adds to `base`'s matrix. */
  delta(base: PairBase): Tensor {
    if (!this.lora_magnitude_vector) return this.update();
    const w = as(base.matrix(), this.a.dtype);
    const v = w.add(this.update());
    return v.mul(this.#factor(base).unsqueeze(1)).sub(w);
  }

  /**
   * What the adapter adds to the layer's output: [..., in] -> [..., out]. `wx` is W x.
   */
  forward(x: Tensor, wx: Tensor, base: PairBase): Tensor {
    const dropping = this.dropout.training && this.dropout.p > 0;
    const input = this.dropped(x);
    const y = this.lowRank(input);
    if (!this.lora_magnitude_vector) return as(y, wx.dtype);
    const factor = this.#factor(base);
    const direction = as(dropping ? base.product(input) : wx, y.dtype);
    return as(direction.mul(factor.sub(1)).add(y.mul(factor)), wx.dtype);
  }

  /** The input after dropout; indices are not dropped. */
  protected dropped(x: Tensor): Tensor {
    return this.dropout.forward(as(x, this.a.dtype));
  }

  /** m / ‖W + ΔW‖ by rows, [out]; the norm is a constant in backward (section 4.3 of the paper). */
  #factor(base: PairBase): Tensor {
    const norm = noGrad(() =>
      as(base.matrix(), this.a.dtype).add(this.update()).square().sum(1).sqrt()
    );
    return this.lora_magnitude_vector!.div(norm.detach());
  }

  /** Starts DoRA's magnitudes at the norms that there are: the start changes nothing. */
  startMagnitude(base: PairBase): void {
    if (!this.config.use_dora) return;
    const norm = noGrad(() =>
      as(base.matrix(), this.a.dtype).add(this.update()).square().sum(1).sqrt()
    );
    if (this.lora_magnitude_vector) this.lora_magnitude_vector.assign(norm);
    else this.lora_magnitude_vector = new Parameter(norm);
  }
}

/** The adapter of a linear layer. The names of its fields are PEFT's. */
export class LoraAdapter extends LoraPair {
  /** A, from the input to the rank: [r, in] */
  lora_A: Linear;
  /** B, from the rank to the output: [out, r] */
  lora_B: Linear;

  /** A fresh adapter, which by default changes nothing yet: B is 0. */
  constructor(sizes: PairSizes, config: ResolvedLoraConfig) {
    super(sizes, config);
    const { inFeatures, outFeatures, r } = sizes;
    const init = config.init_lora_weights;
    const bound = 1 / Math.sqrt(inFeatures); // kaiming-uniform with a = √5
    const a = init === "gaussian"
      ? normal([r, inFeatures], { std: 1 / r })
      : uniform([r, inFeatures], { low: -bound, high: bound });
    this.lora_A = new Linear(inFeatures, r, { bias: false, weight: new Parameter(a) });
    this.lora_B = init === false
      ? new Linear(r, outFeatures, { bias: config.lora_bias })
      : Linear.zero(r, outFeatures, config.lora_bias);
  }

  /** A, [r, in] */
  override get a(): Parameter {
    return this.lora_A.weight;
  }
  /** B, [out, r] */
  override get b(): Parameter {
    return this.lora_B.weight;
  }

  /** The parameters by PEFT's names in files. */
  override parts(): [string, Parameter][] {
    const parts: [string, Parameter][] = [["lora_A.weight", this.a]];
    if (this.lora_B.bias) parts.push(["lora_B.bias", this.lora_B.bias]);
    parts.push(["lora_B.weight", this.b]);
    if (this.lora_magnitude_vector) {
      parts.push(["lora_magnitude_vector", this.lora_magnitude_vector]);
    }
    return parts;
  }

  /** What is added to the bias, [out], or null. */
  override biasDelta(): Tensor | null {
    return this.lora_B.bias?.mul(this.scale) ?? null;
  }

  /** [..., in] -> [..., out] */
  protected override lowRank(x: Tensor): Tensor {
    // Scaled where it is small: [..., r].
    const through = (a: Tensor, b: Tensor): Tensor =>
      x.matmul(a.transpose()).mul(this.scale).matmul(b.transpose());
    let y = through(this.a, this.b);
    if (this.start) y = y.sub(through(this.start.a, this.start.b));
    const bias = this.biasDelta();
    return bias ? y.add(bias) : y;
  }
}

/** The adapter of an embedding. The names of its fields are PEFT's. */
export class LoraEmbeddingAdapter extends LoraPair {
  /** A, [r, V] */
  lora_embedding_A: Parameter;
  /** B, [D, r] */
  lora_embedding_B: Parameter;

  /** A fresh adapter, which by default changes nothing yet: A is 0. */
  constructor(sizes: PairSizes, config: ResolvedLoraConfig) {
    super(sizes, config);
    const { inFeatures, outFeatures, r } = sizes;
    const random = config.init_lora_weights === false;
    this.lora_embedding_A = new Parameter(
      random ? normal([r, inFeatures]) : zeros([r, inFeatures]),
    );
    this.lora_embedding_B = new Parameter(normal([outFeatures, r]));
  }

  /** A, [r, in] */
  override get a(): Parameter {
    return this.lora_embedding_A;
  }
  /** B, [out, r] */
  override get b(): Parameter {
    return this.lora_embedding_B;
  }

  /** The parameters by PEFT's names in files. */
  override parts(): [string, Parameter][] {
    const parts: [string, Parameter][] = [
      ["lora_embedding_A", this.a],
      ["lora_embedding_B", this.b],
    ];
    if (this.lora_magnitude_vector) {
      parts.push(["lora_magnitude_vector", this.lora_magnitude_vector]);
    }
    return parts;
  }

  /** Indices are not dropped. */
  protected override dropped(x: Tensor): Tensor {
    return x;
  }

  /** i32 [...] -> [..., D] */
  protected override lowRank(ids: Tensor): Tensor {
    return embedding(this.a.transpose(), ids).mul(this.scale).matmul(this.b.transpose());
  }
}

/** `x` in that type, as it is where it has it. */
export function as(x: Tensor, dtype: DType): Tensor {
  return x.dtype === dtype ? x : x.to(dtype);
}

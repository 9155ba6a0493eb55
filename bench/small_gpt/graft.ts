/**
 * The small GPT in graft.
 *
 * @module
 */

import { attention, linearCrossEntropy, type Tensor, tensor } from "@graft/ml";
import { Embedding, LayerNorm, Linear, Module } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import { batch, type GptSizes, type Method, SPEC, weights } from "./spec.ts";

class Attention extends Module {
  c_attn: Linear;
  c_proj: Linear;
  readonly #heads: number;

  constructor({ size, heads }: GptSizes) {
    super();
    this.c_attn = new Linear(size, 3 * size);
    this.c_proj = new Linear(size, size);
    this.#heads = heads;
  }

  /** [B, T, D] -> [B, T, D] */
  forward(x: Tensor): Tensor {
    const [b, t, size] = x.shape;
    const [q, k, v] = this.c_attn.forward(x).split(size, -1) // [B, H, T, D/H]
      .map((part) => part.reshape(b, t, this.#heads, size / this.#heads).permute(0, 2, 1, 3));
    const y = attention(q, k, v, { causal: true });
    return this.c_proj.forward(y.permute(0, 2, 1, 3).reshape(b, t, size));
  }
}

class Mlp extends Module {
  c_fc: Linear;
  c_proj: Linear;

  constructor({ size }: GptSizes) {
    super();
    this.c_fc = new Linear(size, 4 * size);
    this.c_proj = new Linear(4 * size, size);
  }

  /** [B, T, D] -> [B, T, D] */
  forward(x: Tensor): Tensor {
    return this.c_proj.forward(this.c_fc.forward(x).gelu("tanh"));
  }
}

class Block extends Module {
  ln_1: LayerNorm;
  attn: Attention;
  ln_2: LayerNorm;
  mlp: Mlp;

  constructor(sizes: GptSizes) {
    super();
    this.ln_1 = new LayerNorm(sizes.size, SPEC.epsilon);
    this.attn = new Attention(sizes);
    this.ln_2 = new LayerNorm(sizes.size, SPEC.epsilon);
    this.mlp = new Mlp(sizes);
  }

  /** [B, T, D] -> [B, T, D] */
  forward(x: Tensor): Tensor {
    const h = x.add(this.attn.forward(this.ln_1.forward(x)));
    return h.add(this.mlp.forward(this.ln_2.forward(h)));
  }
}

/** Decoder with learned positions and a tied head. */
class SmallGpt extends Module {
  wte: Embedding;
  wpe: Embedding;
  h: Block[];
  ln_f: LayerNorm;

  constructor(sizes: GptSizes) {
    super();
    const { layers, size, sequence, vocabulary } = sizes;
    this.wte = new Embedding(vocabulary, size);
    this.wpe = new Embedding(sequence, size);
    this.h = Array.from({ length: layers }, () => new Block(sizes));
    this.ln_f = new LayerNorm(size, SPEC.epsilon);
  }

  /** i32 [B, T] twice -> a scalar, in nats a token. */
  loss(inputs: Tensor, targets: Tensor): Tensor {
    let x = this.wte.forward(inputs).add(this.wpe.weight.slice(0, 0, inputs.shape[1]));
    for (const block of this.h) x = block.forward(x);
    const hidden = this.ln_f.forward(x).reshape(-1, x.shape[2]); // [B T, D]
    return linearCrossEntropy(hidden, this.wte.weight, targets.flatten());
  }
}

/** The GPT in training, on the current device. */
export async function graftGpt(
  sizes: GptSizes,
  method: Method,
): Promise<{ step(index: number): Promise<number> }> {
  const model = new SmallGpt(sizes);
  const { rank, scale, lr, betas, adamEpsilon: eps, weightDecay } = SPEC;
  if (method === "lora") {
    inject(model, { r: rank, lora_alpha: scale * rank, target_modules: ["c_attn"] });
  }
  const given = weights(sizes, method);
  for (const [path, parameter] of model.namedParameters()) {
    const name = path.replace(/\.adapters\.default\.(lora_[AB])\.weight$/, ".$1");
    const weight = given.get(name);
    if (!weight) throw new Error(`the bench has no weight for ${path}`);
    await parameter.write(weight.data);
  }
  const optimizer = new AdamW(model.trainable(), { lr, betas, eps, weightDecay });
  const shape = [sizes.batch, sizes.sequence];
  return {
    async step(index: number): Promise<number> {
      const { inputs, targets } = batch(sizes, index);
      const loss = model.loss(tensor(inputs, { shape }), tensor(targets, { shape }));
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      return await loss.item();
    },
  };
}

/**
 * The small GPT in graft.
 *
 * @module
 */

import { attention, init, linearCrossEntropy, type Tensor, tensor } from "@graft/ml";
import { Embedding, LayerNorm, Linear, Module } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import type { Device } from "../../core/mod.ts";
import { batch, type Method, type Side, SPEC, weights } from "./spec.ts";

const { layers, size, heads, sequence, vocabulary, epsilon, rank, scale } = SPEC;

class Attention extends Module {
  c_attn: Linear = new Linear(size, 3 * size);
  c_proj: Linear = new Linear(size, size);

  /** [B, T, D] -> [B, T, D] */
  forward(x: Tensor): Tensor {
    const [b, t] = x.shape;
    const [q, k, v] = this.c_attn.forward(x).split(size, -1)
      .map((part) => part.reshape(b, t, heads, size / heads).permute(0, 2, 1, 3)); // [B, H, T, D/H]
    const y = attention(q, k, v, { causal: true });
    return this.c_proj.forward(y.permute(0, 2, 1, 3).reshape(b, t, size));
  }
}

class Mlp extends Module {
  c_fc: Linear = new Linear(size, 4 * size);
  c_proj: Linear = new Linear(4 * size, size);

  /** [B, T, D] -> [B, T, D] */
  forward(x: Tensor): Tensor {
    return this.c_proj.forward(this.c_fc.forward(x).gelu("tanh"));
  }
}

class Block extends Module {
  ln_1: LayerNorm = new LayerNorm(size, epsilon);
  attn: Attention = new Attention();
  ln_2: LayerNorm = new LayerNorm(size, epsilon);
  mlp: Mlp = new Mlp();

  /** [B, T, D] -> [B, T, D] */
  forward(x: Tensor): Tensor {
    const h = x.add(this.attn.forward(this.ln_1.forward(x)));
    return h.add(this.mlp.forward(this.ln_2.forward(h)));
  }
}

/** Decoder with learned positions and a tied head. */
class SmallGpt extends Module {
  wte: Embedding = new Embedding(vocabulary, size);
  wpe: Embedding = new Embedding(sequence, size);
  h: Block[] = Array.from({ length: layers }, () => new Block());
  ln_f: LayerNorm = new LayerNorm(size, epsilon);

  /** i32 [B, T] twice -> a scalar, in nats a token. */
  loss(inputs: Tensor, targets: Tensor): Tensor {
    let x = this.wte.forward(inputs).add(this.wpe.weight.slice(0, 0, inputs.shape[1]));
    for (const block of this.h) x = block.forward(x);
    const hidden = this.ln_f.forward(x).reshape(-1, size); // [B T, D]
    return linearCrossEntropy(hidden, this.wte.weight, targets.flatten());
  }
}

/** Opens the side; `device` is there for profiles. */
export async function graft(
  method: Method,
  threads?: number,
): Promise<Side & { readonly device: Device }> {
  const device = await init({ device: "cpu", threads });
  const model = new SmallGpt();
  if (method === "lora") {
    inject(model, { r: rank, lora_alpha: scale * rank, target_modules: ["c_attn"] });
  }
  const given = weights(method);
  for (const [path, parameter] of model.namedParameters()) {
    const name = path.replace(/\.adapters\.default\.(lora_[AB])\.weight$/, ".$1");
    const weight = given.get(name);
    if (!weight) throw new Error(`the bench has no weight for ${path}`);
    await parameter.write(weight.data);
  }
  const { lr, betas, adamEpsilon: eps, weightDecay } = SPEC;
  const optimizer = new AdamW(model.trainable(), { lr, betas, eps, weightDecay });
  const shape = [SPEC.batch, sequence];
  return {
    name: `graft, ${device.description}`,
    device,
    async step(index: number): Promise<number> {
      const { inputs, targets } = batch(index);
      const loss = model.loss(tensor(inputs, { shape }), tensor(targets, { shape }));
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      return await loss.item();
    },
  };
}

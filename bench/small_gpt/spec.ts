/**
 * What both sides of the comparison build from: the same model, weights and batches.
 *
 * @module
 */

/** What is trained: all weights, or LoRA on the fused query, key and value projection. */
export type Method = "full" | "lora";

/** Sizes and settings of the small GPT. */
export const SPEC = {
  layers: 4,
  size: 128,
  heads: 4,
  sequence: 128,
  batch: 8,
  vocabulary: 256,
  rank: 8,
  /** LoRA's α / r. */
  scale: 2,
  epsilon: 1e-5,
  lr: 1e-3,
  betas: [0.9, 0.999],
  adamEpsilon: 1e-8,
  weightDecay: 0.01,
} as const;

/** One weight on the host. Matrices of linear layers are [out, in]. */
export interface Weight {
  readonly shape: readonly number[];
  readonly data: Float32Array<ArrayBuffer>;
}

/** One batch of next-token prediction, [batch, sequence] each. */
export interface Batch {
  readonly inputs: Int32Array<ArrayBuffer>;
  readonly targets: Int32Array<ArrayBuffer>;
}

/** Uniform numbers in [0, 1), the same in every engine (Marsaglia 2003, "Xorshift RNGs"). */
function uniformSource(seed: number): () => number {
  let x = seed | 0 || 1;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
}

/** All weights by name, those of LoRA too: N(0, 0.02), norms 1 and 0, LoRA's B 0. */
export function weights(method: Method): Map<string, Weight> {
  const { layers, size, sequence, vocabulary, rank } = SPEC;
  const uniform = uniformSource(2463534242);
  const made = new Map<string, Weight>();
  const put = (name: string, shape: number[], value: () => number): void => {
    const count = shape.reduce((a, b) => a * b);
    made.set(name, { shape, data: Float32Array.from({ length: count }, value) });
  };
  const normal = (std: number) => (): number =>
    std * Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  const zero = (): number => 0;
  const one = (): number => 1;
  const norm = (name: string): void => {
    put(`${name}.weight`, [size], one);
    put(`${name}.bias`, [size], zero);
  };
  const linear = (name: string, out: number, inner: number): void => {
    put(`${name}.weight`, [out, inner], normal(0.02));
    put(`${name}.bias`, [out], zero);
  };
  put("wte.weight", [vocabulary, size], normal(0.02));
  put("wpe.weight", [sequence, size], normal(0.02));
  for (let i = 0; i < layers; i++) {
    norm(`h.${i}.ln_1`);
    linear(`h.${i}.attn.c_attn`, 3 * size, size);
    linear(`h.${i}.attn.c_proj`, size, size);
    norm(`h.${i}.ln_2`);
    linear(`h.${i}.mlp.c_fc`, 4 * size, size);
    linear(`h.${i}.mlp.c_proj`, size, 4 * size);
  }
  norm("ln_f");
  if (method === "lora") {
    for (let i = 0; i < layers; i++) {
      put(`h.${i}.attn.c_attn.lora_A`, [rank, size], normal(1 / rank));
      put(`h.${i}.attn.c_attn.lora_B`, [3 * size, rank], zero);
    }
  }
  return made;
}

/**
 * Batch number `step`. Three tokens in four follow from the one before, so that there is something to
 * learn and the losses that are compared are not all alike.
 */
export function batch(step: number): Batch {
  const { batch, sequence, vocabulary } = SPEC;
  const uniform = uniformSource(88675123 + 7919 * step);
  const inputs = new Int32Array(batch * sequence);
  const targets = new Int32Array(batch * sequence);
  for (let b = 0; b < batch; b++) {
    let token = Math.floor(uniform() * vocabulary);
    for (let t = 0; t < sequence; t++) {
      inputs[b * sequence + t] = token;
      token = uniform() < 0.75 ? (token * 5 + 17) % vocabulary : Math.floor(uniform() * vocabulary);
      targets[b * sequence + t] = token;
    }
  }
  return { inputs, targets };
}

/** One side of the comparison: a model that takes training steps. */
export interface Side {
  /** Library, version, what it runs on. */
  readonly name: string;
  /** Takes step number `index` and gives its loss. */
  step(index: number): Promise<number>;
}

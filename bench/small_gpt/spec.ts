/**
 * What all sides of the comparison build from: the same models, weights and batches.
 *
 * @module
 */

/** What is trained: all weights, or LoRA on the fused query, key and value projection. */
export type Method = "full" | "lora";

/** Sizes of a GPT. */
export interface GptSizes {
  readonly layers: number;
  readonly size: number;
  readonly heads: number;
  readonly sequence: number;
  readonly batch: number;
  readonly vocabulary: number;
}

/** The two GPTs. */
export const GPTS: Readonly<Record<"small" | "large", GptSizes>> = {
  small: { layers: 4, size: 128, heads: 4, sequence: 128, batch: 8, vocabulary: 256 },
  large: { layers: 6, size: 384, heads: 6, sequence: 256, batch: 4, vocabulary: 4096 },
};

/** The name of a GPT. */
export type GptName = keyof typeof GPTS;

/** Settings both share. */
export const SPEC = {
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
export function weights(sizes: GptSizes, method: Method): Map<string, Weight> {
  const { layers, size, sequence, vocabulary } = sizes;
  const { rank } = SPEC;
  const uniform = uniformSource(2463534242);
  const made = new Map<string, Weight>();
  const put = (name: string, shape: number[], value: () => number): void => {
    const data = new Float32Array(shape.reduce((a, b) => a * b));
    for (let i = 0; i < data.length; i++) data[i] = value();
    made.set(name, { shape, data });
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

/** Whether `method` trains the weight of this name. */
export function trains(method: Method, name: string): boolean {
  return method === "full" || name.includes("lora_");
}

/**
 * Batch number `step`. Three tokens in four follow from the one before, so that there is something to
 * learn and the losses that are compared are not all alike.
 */
export function batch(sizes: GptSizes, step: number): Batch {
  const { batch, sequence, vocabulary } = sizes;
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

/**
 * What is measured: each case, its size, and how many floating-point operations it needs and bytes it
 * moves at least.
 *
 * @module
 */

import { type GptName, GPTS, type Method } from "./small_gpt/spec.ts";

/** What a case computes; every side that can has code for it. */
export type Kind =
  | "matmul"
  | "attention"
  | "layer norm"
  | "RMS norm"
  | "cross-entropy"
  | "head"
  | "embedding"
  | "AdamW"
  | "step"
  | "stories"
  | "prompt"
  | "decode"
  | "load";

/** A piece of work. */
export interface Case {
  readonly name: string;
  /** The table it stands in. */
  readonly group: string;
  readonly kind: Kind;
  readonly sizes: Readonly<Record<string, number>>;
  /** Of the GPT and how it is trained. */
  readonly gpt?: GptName;
  readonly method?: Method;
  /** The least work: floating-point operations, and bytes to and from memory. 0: no limit is told. */
  readonly flops: number;
  readonly bytes: number;
  /** Tokens of a run, where tokens a second are of interest. */
  readonly tokens?: number;
  /** Devices it is for; default: all. */
  readonly only?: "cpu";
  /** Part of `--quick` and of the software GPU's run. */
  readonly quick?: boolean;
}

/** Bytes of `n` f32. */
const f32 = (n: number): number => 4 * n;

function matmul(
  [batch, m, n, k]: readonly number[],
  turned: boolean,
  note: string,
  quick = false,
): Case {
  const name = `${batch > 1 ? `${batch} × ` : ""}[${m}, ${k}] · [${k}, ${n}]${turned ? "ᵀ" : ""}`;
  return {
    name: note ? `${name}, ${note}` : name,
    group: "Matrix products",
    kind: "matmul",
    sizes: { batch, m, n, k, turned: turned ? 1 : 0 },
    flops: 2 * batch * m * n * k,
    bytes: f32(batch * (m * k + k * n + m * n)),
    quick,
  };
}

function attention(t: number, backward: boolean): Case {
  const [b, h, d] = [t <= 256 ? 4 : 1, 6, 64];
  // Two products forward, five more backward; a causal mask leaves half of each.
  const product = b * h * t * (t + 1) * d;
  return {
    name: `T ${t}, B ${b}, H ${h}, D ${d}, causal${backward ? ", with gradients" : ""}`,
    group: "Attention",
    kind: "attention",
    sizes: { b, h, t, d, backward: backward ? 1 : 0 },
    flops: (backward ? 7 : 2) * product,
    bytes: f32((backward ? 10 : 4) * b * h * t * d),
    quick: t === 128,
  };
}

function norm(kind: "layer norm" | "RMS norm"): Case {
  const [rows, size] = [1024, 768];
  return {
    name: `${kind}, [${rows}, ${size}], with gradients`,
    group: "Rows",
    kind,
    sizes: { rows, size },
    flops: 0,
    // x and g are read, y and dx written.
    bytes: f32(4 * rows * size),
    quick: true,
  };
}

function crossEntropy(classes: number): Case {
  const rows = 128;
  return {
    name: `cross-entropy, [${rows}, ${classes}], with the gradient`,
    group: "Rows",
    kind: "cross-entropy",
    sizes: { rows, classes },
    flops: 0,
    bytes: f32(2 * rows * classes),
    quick: classes < 40000,
  };
}

function head(classes: number): Case {
  const [rows, size] = [256, 288];
  return {
    name: `frozen head and cross-entropy, [${rows}, ${size}] · [${size}, ${classes}], with dx`,
    group: "Rows",
    kind: "head",
    sizes: { rows, size, classes },
    flops: 4 * rows * size * classes,
    bytes: f32(classes * size),
  };
}

function embedding(): Case {
  const [rows, size, vocabulary] = [1024, 288, 32000];
  return {
    name: `embedding, ${rows} of [${vocabulary}, ${size}], with the gradient`,
    group: "Rows",
    kind: "embedding",
    sizes: { rows, size, vocabulary },
    flops: 0,
    // The gradient is as large as the table.
    bytes: f32(3 * rows * size + vocabulary * size),
    quick: true,
  };
}

function adamW(): Case {
  const [count, size] = [24, 384];
  const elements = count * (size * size + size);
  return {
    name: `AdamW, ${count} of [${size}, ${size}] and ${count} of [${size}]`,
    group: "Rows",
    kind: "AdamW",
    sizes: { count, size },
    flops: 0,
    // Weight, gradient and two moments are read; weight and moments written.
    bytes: f32(7 * elements),
    quick: true,
  };
}

function step(gpt: GptName, method: Method): Case {
  const { layers, size, sequence, batch, vocabulary } = GPTS[gpt];
  const tokens = batch * sequence;
  const weights = layers * 12 * size * size + vocabulary * size;
  const attended = layers * batch * sequence * (sequence + 1) * size;
  return {
    name: `GPT, ${layers} layers, d ${size}, T ${sequence}, B ${batch}, V ${vocabulary}: ` +
      (method === "full" ? "all weights" : "LoRA"),
    group: "Training steps",
    kind: "step",
    sizes: {},
    gpt,
    method,
    flops: (method === "full" ? 6 : 4) * tokens * weights + 7 * attended,
    bytes: 0,
    tokens,
    only: gpt === "large" ? "cpu" : undefined,
    quick: gpt === "small",
  };
}

function stories(): Case {
  const [batch, sequence] = [4, 256];
  const [layers, size, inner, vocabulary] = [6, 288, 768, 32000];
  const weights = layers * (4 * size * size + 3 * size * inner) + vocabulary * size;
  const attended = layers * batch * sequence * (sequence + 1) * size;
  return {
    name: `stories15M, T ${sequence}, B ${batch}: LoRA on q, k, v, o`,
    group: "Training steps",
    kind: "stories",
    sizes: { batch, sequence },
    method: "lora",
    flops: 4 * batch * sequence * weights + 7 * attended,
    bytes: 0,
    tokens: batch * sequence,
    only: "cpu",
  };
}

/** Bytes of stories15M's weights, all of which each token reads. */
const STORIES_BYTES = 60 * 1e6;

/** All cases, table by table. */
export const CASES: readonly Case[] = [
  matmul([1, 256, 256, 256], false, "", true),
  matmul([1, 512, 512, 512], false, "", true),
  matmul([1, 768, 768, 768], false, ""),
  matmul([1, 1024, 1024, 1024], false, "", true),
  matmul([1, 1024, 1024, 1024], true, ""),
  matmul([1, 1024, 8, 384], true, "LoRA's A", true),
  matmul([1, 1024, 384, 8], true, "LoRA's B", true),
  matmul([1, 256, 32000, 288], true, "a head"),
  matmul([1, 1, 32000, 288], true, "a head, one row"),
  matmul([32, 128, 128, 64], false, ""),
  ...[128, 256, 512, 1024, 2048].flatMap((t) => [attention(t, false), attention(t, true)]),
  norm("layer norm"),
  norm("RMS norm"),
  crossEntropy(32000),
  crossEntropy(50257),
  head(32000),
  embedding(),
  adamW(),
  step("small", "full"),
  step("small", "lora"),
  step("large", "full"),
  step("large", "lora"),
  stories(),
  {
    name: "stories15M: prompt of 200 tokens",
    group: "Generation and loading",
    kind: "prompt",
    sizes: { prompt: 200, count: 1 },
    flops: 2 * 200 * 6e6,
    bytes: STORIES_BYTES,
    tokens: 200,
    only: "cpu",
  },
  {
    name: "stories15M: 64 tokens, one by one, after 16",
    group: "Generation and loading",
    kind: "decode",
    sizes: { prompt: 16, count: 64 },
    flops: 0,
    bytes: 64 * STORIES_BYTES,
    tokens: 64,
    only: "cpu",
    quick: true,
  },
  {
    name: "stories15M: load the checkpoint",
    group: "Generation and loading",
    kind: "load",
    sizes: {},
    flops: 0,
    bytes: 2 * STORIES_BYTES,
    only: "cpu",
  },
];

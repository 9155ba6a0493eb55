/**
 * What the heads of encoders share: batches, losses, output layers.
 *
 * @module
 */

import { crossEntropy, type Tensor, tensor, zeros } from "../../core/mod.ts";
import { Linear } from "../linear.ts";
import { bceWithLogits, mseLoss } from "../losses.ts";
import { Parameter } from "../module.ts";
import type { EncoderOptions } from "./encoder.ts";
import type { EncoderConfig, ResolvedEncoderConfig } from "./encoder_config.ts";

/**
 * A batch with labels, as tensors or as a data loader gives it: inputs i32 [B, T], `attentionMask` and
 * `tokenTypes` as in {@linkcode EncoderOptions}, and labels. For sequences these are i32 [B], or f32 [B]
 * or [B, L] for regression, or f32 [B, L] of 0 and 1 where several labels may hold; for tokens i32
 * [B, T], -100 where one does not count.
 */
export type EncoderBatch =
  | (EncoderOptions & { readonly inputs: Tensor; readonly labels: Tensor })
  | {
    readonly inputs: Int32Array<ArrayBuffer>;
    readonly labels: Int32Array<ArrayBuffer> | Float32Array<ArrayBuffer>;
    readonly attentionMask?: Int32Array<ArrayBuffer>;
    readonly tokenTypes?: Int32Array<ArrayBuffer>;
    readonly shape: readonly [batch: number, sequence: number];
  };

/** A batch on the device. */
export interface EncoderInputs {
  /** i32 [B, T] */
  readonly inputs: Tensor;
  /** As in {@linkcode EncoderBatch}. */
  readonly labels: Tensor;
  /** Of the pass. */
  readonly options: EncoderOptions;
}

/** A batch as tensors; labels on the host become [B], or [B, n] where there are n for each row. */
export function encoderInputs(batch: EncoderBatch): EncoderInputs {
  if (!("shape" in batch)) {
    const { inputs, labels, ...options } = batch;
    return { inputs, labels, options };
  }
  const { shape, labels, attentionMask, tokenTypes } = batch;
  const each = labels.length / shape[0];
  return {
    inputs: tensor(batch.inputs, { shape }),
    labels: tensor(labels, { shape: each === 1 ? [shape[0]] : [shape[0], each] }),
    options: {
      attentionMask: attentionMask && tensor(attentionMask, { shape }),
      tokenTypes: tokenTypes && tensor(tokenTypes, { shape }),
    },
  };
}

/**
 * The loss of logits [B, L] that `problem_type` names: mean squared error, cross-entropy, or binary
 * cross-entropy of each label. Where it names none: regression for one label, else by the labels'
 * dtype, as Hugging Face does.
 *
 * Throws a `RangeError` where the labels' shape or dtype is another than that needs.
 */
export function sequenceLoss(
  logits: Tensor,
  labels: Tensor,
  config: Pick<EncoderConfig, "problem_type">,
): Tensor {
  const [b, count] = logits.shape;
  const isFloat = labels.dtype !== "i32";
  const problem = config.problem_type ??
    (count === 1
      ? "regression"
      : isFloat
      ? "multi_label_classification"
      : "single_label_classification");
  const need = (holds: boolean, what: string): void => {
    if (holds) return;
    throw new RangeError(
      `${problem}: needs labels ${what}, got ${labels.dtype} [${labels.shape.join(", ")}]`,
    );
  };
  if (problem === "single_label_classification") {
    need(!isFloat && labels.size === b, `i32 [${b}]`);
    return crossEntropy(logits, labels.flatten());
  }
  const shape = problem === "regression" && count === 1 ? `[${b}]` : `[${b}, ${count}]`;
  need(labels.size === b * count && labels.shape[0] === b, `f32 ${shape}`);
  const target = labels.to("f32").reshape(b, count);
  return problem === "regression" ? mseLoss(logits, target) : bceWithLogits(logits, target);
}

/**
 * Mean cross-entropy of logits [B, T, L] a label, in nats.
 *
 * Throws a `RangeError` where labels are not i32 [B, T].
 */
export function tokenLoss(logits: Tensor, labels: Tensor): Tensor {
  const [b, t, count] = logits.shape;
  if (labels.dtype !== "i32" || labels.shape[0] !== b || labels.size !== b * t) {
    throw new RangeError(
      `token loss: needs labels i32 [${b}, ${t}], got ${labels.dtype} [${labels.shape.join(", ")}]`,
    );
  }
  return crossEntropy(logits.reshape(b * t, count), labels.flatten());
}

/** An output layer [V, C] with the bias given, tied to the embedding `weight` where the model asks for it. */
export function tiedDecoder(
  config: ResolvedEncoderConfig,
  weight: Parameter,
  bias: Parameter,
): Linear {
  return new Linear(config.hidden_size, config.vocab_size, {
    weight: config.tie_word_embeddings ? weight : undefined,
    bias,
  });
}

/** A bias of 0 for each token, [V]. */
export function outputBias(config: ResolvedEncoderConfig): Parameter {
  return new Parameter(zeros([config.vocab_size]));
}

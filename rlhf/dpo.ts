/**
 * Direct preference optimisation: a policy learns from pairs of answers, without a reward model.
 *
 * @module
 */

import { noGrad, type Tensor, where } from "../core/mod.ts";
import type { CausalLM } from "../nn/mod.ts";
import { adapterStatus, withAdapters } from "../peft/mod.ts";
import { type Answer, type AnswerBatch, answerBatch, type AnswerRoom } from "./answers.ts";
import { checkAbove0, checkTokens, rowLimits } from "./checks.ts";
import { evaluating } from "./modes.ts";
import { policyPass } from "./policy_pass.ts";

/** Two answers to a prompt, as tokens; an end token is the last of an answer that has one. */
export interface PreferencePair {
  /** The prompt. */
  readonly prompt: readonly number[];
  /** The better answer. */
  readonly chosen: readonly number[];
  /** The worse one. */
  readonly rejected: readonly number[];
}

/** Options of {@linkcode dpoLoss}. */
export interface DPOOptions {
  /** How closely the policy is held to the reference. Default .1. */
  readonly beta?: number;
  /** `sigmoid` is DPO, `ipo` its square loss on means over tokens. Default `sigmoid`. */
  readonly kind?: "sigmoid" | "ipo";
  /**
   * The reference policy: another model, or the names of the adapters of this one that are active in
   * it. Default: none of them, which is the model that the adapters were added to.
   */
  readonly reference?: CausalLM | readonly string[];
  /**
   * What the sum over pairs is divided by. Default: the pairs given. Where several batches make one
   * step, give those of all.
   */
  readonly count?: number;
  /** Room in the tensors of a batch. */
  readonly room?: AnswerRoom;
}

/** What {@linkcode dpoLoss} gives: scalars; all but the loss are for the log, under TRL's names. */
export interface DPOLoss {
  /** The loss. */
  readonly loss: Tensor;
  /** Mean of `β (log π − log π_ref)` of the chosen answers. */
  readonly "rewards/chosen": Tensor;
  /** That of the rejected ones. */
  readonly "rewards/rejected": Tensor;
  /** Share of the pairs in which the chosen one's is higher. */
  readonly "rewards/accuracies": Tensor;
  /** Mean difference of the two. */
  readonly "rewards/margins": Tensor;
  /** Mean log π of the chosen answers, in nats. */
  readonly "logps/chosen": Tensor;
  /** That of the rejected ones. */
  readonly "logps/rejected": Tensor;
}

/**
 * The loss of DPO (Rafailov et al. 2023, "Direct preference optimization", formula 7), the mean over
 * pairs of
 *
 *     −log σ(β [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)])
 *
 * log π of an answer is the sum over its tokens given the prompt. With fresh adapters the policy is
 * the reference, and the first loss is ln 2. `ipo` is the mean of `(d − 1 / 2β)²` (Azar et al.
 * 2023, "A general theoretical paradigm to understand learning from human preferences", formula 17),
 * where d is the difference of the means over the answers' tokens, as in TRL. Dropout is off in the
 * reference's pass.
 *
 * Throws a `RangeError` where there is no pair, an answer or prompt is empty, a pair's answers are the
 * same, a row is longer than the context or has a token outside the vocabulary, or β is not above 0;
 * and an `Error` where there is no reference: no adapter to switch off, and no model given.
 *
 * @example
 * ```ts
 * import { init } from "@graft/ml";
 * import { LlamaForCausalLM } from "@graft/ml/nn";
 * import { AdamW } from "@graft/ml/optim";
 * import { inject } from "@graft/ml/peft";
 * import { dpoLoss } from "@graft/ml/rlhf";
 *
 * await init({ device: "cpu" });
 * const model = inject(
 *   new LlamaForCausalLM({
 *     vocab_size: 50, hidden_size: 16, intermediate_size: 32,
 *     num_hidden_layers: 1, num_attention_heads: 2,
 *   }),
 *   { r: 4 },
 * );
 * const optimizer = new AdamW(model.trainable(), { lr: 1e-3 });
 * const pairs = [{ prompt: [1, 5, 6], chosen: [7, 8, 2], rejected: [9, 2] }];
 * for (let step = 0; step < 3; step++) {
 *   const { loss, "rewards/margins": margin } = dpoLoss(model, pairs);
 *   loss.backward();
 *   await optimizer.step();
 *   optimizer.zeroGrad();
 *   console.log(await loss.item(), await margin.item()); // 0.693 0, then less and more
 * }
 * ```
 */
export function dpoLoss(
  model: CausalLM,
  pairs: readonly PreferencePair[],
  options: DPOOptions = {},
): DPOLoss {
  const { beta = 0.1, kind = "sigmoid", reference = [], count, room } = options;
  checkAbove0("dpoLoss", "beta", beta);
  checkReference(model, reference);
  checkPairs(pairs, model);
  const of = (side: "chosen" | "rejected"): Answer[] =>
    pairs.map((pair) => ({ prompt: pair.prompt, tokens: pair[side], ended: true }));
  // Chosen and rejected in one pass: rows of one batch.
  const batch = answerBatch([...of("chosen"), ...of("rejected")], room);
  const policy = answerLogprobs(model, batch); // [2B]
  const ratios = policy.sub(referenceLogprobs(model, reference, batch)); // log π / π_ref
  const [chosen, rejected] = ratios.split(pairs.length); // [B] each
  const delta = chosen.sub(rejected);
  const losses = kind === "ipo"
    ? tokenMeans(ratios, batch, pairs.length).sub(1 / (2 * beta)).square()
    : delta.mul(-beta).softplus(); // −log σ(x) = softplus(−x)
  const loss = losses.sum().div(count ?? pairs.length);
  return noGrad(() => {
    const [logpsChosen, logpsRejected] = policy.split(pairs.length);
    return {
      loss,
      "rewards/chosen": chosen.mean().mul(beta),
      "rewards/rejected": rejected.mean().mul(beta),
      "rewards/accuracies": chosen.gt(rejected).to("f32").mean(),
      "rewards/margins": delta.mean().mul(beta),
      "logps/chosen": logpsChosen.mean(),
      "logps/rejected": logpsRejected.mean(),
    };
  });
}

/** log π of each answer, [B]: the sum over its tokens. */
function answerLogprobs(model: CausalLM, batch: AnswerBatch): Tensor {
  const { logprobs } = policyPass(model, batch, { temperature: 1 }); // [B, R]
  return where(batch.mask, logprobs, 0).sum(1);
}

function referenceLogprobs(
  model: CausalLM,
  reference: CausalLM | readonly string[],
  batch: AnswerBatch,
): Tensor {
  if ("forward" in reference) {
    return evaluating(reference, () => answerLogprobs(reference, batch));
  }
  return evaluating(
    model,
    () => withAdapters(model, reference, () => answerLogprobs(model, batch)),
  );
}

/** Differences [B] of what chosen and rejected answers have a token, of sums [2B]. */
function tokenMeans(sums: Tensor, { mask }: AnswerBatch, pairs: number): Tensor {
  const [chosen, rejected] = sums.div(mask.to("f32").sum(1)).split(pairs);
  return chosen.sub(rejected);
}

function checkReference(model: CausalLM, reference: CausalLM | readonly string[]): void {
  if ("forward" in reference || adapterStatus(model).attached.length > 0) return;
  throw new Error(
    "dpoLoss: the model has no adapters that could be switched off, so it needs a reference: inject " +
      "an adapter, or give a frozen copy as options.reference",
  );
}

function checkPairs(pairs: readonly PreferencePair[], model: CausalLM): void {
  if (pairs.length === 0) throw new RangeError("dpoLoss: needs at least one pair");
  pairs.forEach(({ prompt, chosen, rejected }, i) => {
    for (const [name, tokens] of Object.entries({ prompt, chosen, rejected })) {
      if (tokens.length === 0) {
        throw new RangeError(
          `dpoLoss: ${name} of pair ${i} is empty, it needs a token (an empty answer has its end)`,
        );
      }
    }
    if (chosen.length === rejected.length && chosen.every((id, t) => id === rejected[t])) {
      throw new RangeError(`dpoLoss: both answers of pair ${i} are the same: leave it out`);
    }
  });
  for (const side of ["chosen", "rejected"] as const) {
    const rows = pairs.map((pair) => [...pair.prompt, ...pair[side]]);
    checkTokens("dpoLoss", `the ${side} answer of pair`, rows, rowLimits(model));
  }
}

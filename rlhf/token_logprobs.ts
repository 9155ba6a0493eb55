/**
 * Log-probabilities and entropies of given tokens, a chunk of rows at a time: logits of 32,000 tokens for
 * every position of a rollout are never held together.
 *
 * @module
 */

import {
  arange,
  checkpoint,
  concatenate,
  customFunction,
  noGrad,
  type Tensor,
} from "../core/mod.ts";
import { type CausalLM, Linear } from "../nn/mod.ts";

/** What {@linkcode tokenLogprobs} gives. */
export interface TokenLogprobs {
  /** log π of each token, [N], in nats. */
  readonly logprobs: Tensor;
  /** Entropy of π in each state, [N], in nats; without gradient. */
  readonly entropy: Tensor;
}

/** Logits held at a time. */
const CHUNK = 2 ** 21;

/**
 * log π and entropy in N states: `states` [N, hidden] of the model, `tokens` i32 [N], with π = softmax of
 * the logits divided by `temperature`.
 *
 * Throws a `RangeError` where the temperature is not above 0.
 */
export function tokenLogprobs(
  model: CausalLM,
  states: Tensor,
  tokens: Tensor,
  temperature: number,
): TokenLogprobs {
  if (!(temperature > 0 && temperature < Infinity)) {
    throw new RangeError(`log-probabilities: temperature must be above 0, got ${temperature}`);
  }
  const head = model.lm_head;
  const plain = head.constructor === Linear && !head.bias && !head.weight.requiresGrad;
  const [rows] = states.shape;
  const chunk = Math.max(1, Math.min(rows, Math.floor(CHUNK / model.config.vocab_size)));
  const logprobs: Tensor[] = [], entropies: Tensor[] = [];
  for (let at = 0; at < rows; at += chunk) {
    const end = Math.min(rows, at + chunk);
    const part = states.slice(0, at, end); // [C, hidden]
    const wanted = tokens.slice(0, at, end); // [C]
    const of = plain ? frozenHead : anyHead;
    const { logprobs: row, entropy } = of(model, part, wanted, temperature);
    logprobs.push(row);
    entropies.push(entropy);
  }
  return { logprobs: joined(logprobs), entropy: joined(entropies) };
}

/**
 * With an output layer that is not trained, a row's gradient is its own, whatever its factor: so it is
 * made while the logits are at hand, and backward only scales it.
 */
function frozenHead(
  model: CausalLM,
  states: Tensor,
  tokens: Tensor,
  temperature: number,
): TokenLogprobs {
  const { weight } = model.lm_head; // [V, hidden]
  let entropy: Tensor | null = null;
  let gradient: Tensor | null = null;
  const logprobs = customFunction(
    [states],
    ([states]) => {
      const logits = states.matmul(weight.transpose()).mul(1 / temperature); // [C, V]
      const lse = logits.logsumexp(1, true); // [C, 1]
      const p = logits.sub(lse).exp();
      entropy = lse.squeeze(1).sub(p.mul(logits).sum(1));
      const column = arange(weight.shape[0]).unsqueeze(0);
      const hit = tokens.unsqueeze(1).eq(column).to("f32"); // [C, V]
      // Unused, it never runs.
      gradient = hit.sub(p).matmul(weight).mul(1 / temperature); // [C, hidden]
      return logits.gather(1, tokens.unsqueeze(1)).sub(lse).squeeze(1);
    },
    ({ g }) => [gradient!.mul(g.unsqueeze(1))],
  );
  return { logprobs, entropy: entropy! };
}

/** With any output layer: backward makes the logits again. */
function anyHead(
  model: CausalLM,
  states: Tensor,
  tokens: Tensor,
  temperature: number,
): TokenLogprobs {
  const scaled = (x: Tensor): Tensor => model.logits(x).mul(1 / temperature); // [C, V]
  const logprobs = checkpoint(
    (x) => scaled(x).logSoftmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1),
    states,
  );
  const entropy = noGrad(() => {
    const logits = scaled(states.detach());
    return logits.logsumexp(1).sub(logits.softmax(-1).mul(logits).sum(1));
  });
  return { logprobs, entropy };
}

function joined(parts: Tensor[]): Tensor {
  return parts.length === 1 ? parts[0] : concatenate(parts, 0);
}

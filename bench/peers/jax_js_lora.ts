/**
 * LoRA on stories15M in jax-js: the whole step, AdamW included, is one `jit`.
 *
 * @module
 */

import { blockUntilReady, jit, nn, numpy as np, tree, valueAndGrad } from "@jax-js/jax";
import { SPEC } from "../small_gpt/spec.ts";
import { integers, numbers } from "../sides/work.ts";
import { adamW, corrections, type State, type Weights } from "./jax_js_gpt.ts";
import { angles, EMBEDDING, hidden, readLlama } from "./jax_js_llama.ts";

/** stories15M in training with LoRA on q, k, v and o, on the default device. */
export async function jaxJsLora(
  folder: string,
  batch: number,
  sequence: number,
): Promise<(index: number) => Promise<number>> {
  const { config, weights } = await readLlama(folder);
  const { hidden_size: size, vocab_size: vocabulary } = config;
  const rows = batch * sequence;
  const turn = angles(config, sequence);
  let state: State = { trained: {}, first: {}, second: {} };
  for (const name of Object.keys(weights).filter((name) => name.includes("self_attn"))) {
    const [a, b] = ["A", "B"].map((part) => name.replace("weight", `lora_${part}`));
    state.trained[a] = np.array(numbers(SPEC.rank * size, 5, 0.05)).reshape([SPEC.rank, size]);
    state.trained[b] = np.zeros([size, SPEC.rank]);
    for (const part of [a, b]) {
      state.first[part] = np.zeros(state.trained[part].shape);
      state.second[part] = np.zeros(state.trained[part].shape);
    }
  }

  const loss = (
    trained: Weights,
    bias: np.Array,
    frozen: Weights,
    x: np.Array,
    targets: np.Array,
    turn: np.Array[],
  ): np.Array => {
    const w = { ...trained, ...frozen };
    const h = hidden(
      x,
      w,
      config,
      turn,
      (_, q, k, v) => nn.dotProductAttention(q, k, v, { isCausal: true }),
    ).reshape([rows, size]);
    // The targets' logits come from their rows of the table: faster than a product with ones and zeros.
    const picked = h.ref.mul(np.take(w[EMBEDDING].ref, targets, 0)).sum();
    const logits = np.matmul(h, w[EMBEDDING].ref.transpose()).add(bias); // [B T, V]
    tree.dispose([w, turn]);
    return nn.logsumexp(logits, -1).sum().sub(picked).mul(1 / rows);
  };
  const update = jit((
    state: State,
    frozen: Weights,
    ids: np.Array,
    targets: np.Array,
    turn: np.Array[],
    stepSize: np.Array,
    correction: np.Array,
  ): [np.Array, State, np.Array] => {
    const x = np.take(frozen[EMBEDDING].ref, ids, 0).reshape([batch, sequence, size]);
    // The gradient of a bias of zeros on the logits is asked for, and thrown away by the caller: the
    // logits' gradient, then used twice, is computed once and kept. Otherwise `jit` fuses it into the
    // product with the table, and a step takes over ten times as long.
    const [value, [gradients, unused]] = valueAndGrad(loss, { argnums: [0, 1] })(
      tree.ref(state.trained),
      np.zeros([vocabulary]),
      frozen,
      x,
      targets,
      turn,
    ) as [np.Array, [Weights, np.Array]];
    return [value, adamW(state, gradients, stepSize, correction), unused];
  });

  return async (index) => {
    const ids = integers(batch * (sequence + 1), 10 + index, vocabulary);
    const [value, next, unused] = update(
      state,
      tree.ref(weights),
      np.array(ids.slice(0, rows)),
      np.array(ids.slice(1, rows + 1)),
      tree.ref(turn),
      ...corrections(index),
    );
    state = next;
    tree.dispose(unused);
    await blockUntilReady(state);
    return (await value.data())[0];
  };
}

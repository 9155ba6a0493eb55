/**
 * Generation with stories15M in jax-js: one `jit` for the prompt, one for each token after it.
 *
 * @module
 */

import { jit, nn, numpy as np, tree } from "@jax-js/jax";
import type { Weights } from "./jax_js_gpt.ts";
import { angles, EMBEDDING, hidden, readLlama } from "./jax_js_llama.ts";

/** Keys and values of each layer, [1, capacity, N, H]. */
type Cache = [keys: np.Array, values: np.Array][];

/** Makes ready to generate `count` tokens greedily after `prompt`, anew in each call. */
export async function jaxJsLlamaGeneration(
  folder: string,
  prompt: Int32Array<ArrayBuffer>,
  count: number,
): Promise<{ generate: () => Promise<number[]>; dispose: () => void }> {
  const { config, weights } = await readLlama(folder);
  const { hidden_size: size } = config;
  const capacity = prompt.length + count;
  const turn = angles(config, capacity);

  /** [1, T, D] -> the most likely token after it, i32 [1]. */
  const choose = (h: np.Array, w: Weights): np.Array =>
    np.argmax(np.matmul(h.slice(0, [-1]), w[EMBEDDING].ref.transpose()), -1); // of [1, V]

  const first = jit((w: Weights, ids: np.Array, turn: np.Array[]): [np.Array, Cache] => {
    const t = ids.shape[0];
    const cache: Cache = [];
    const x = np.take(w[EMBEDDING].ref, ids, 0).reshape([1, t, size]);
    const now = turn.map((table) => table.slice([0, t]));
    const h = hidden(x, w, config, now, (_, q, k, v) => {
      const room: [number, number][] = [[0, 0], [0, capacity - t], [0, 0], [0, 0]];
      cache.push([np.pad(k.ref, room), np.pad(v.ref, room)]);
      return nn.dotProductAttention(q, k, v, { isCausal: true });
    });
    const token = choose(h, w);
    tree.dispose([w, now]);
    return [token, cache];
  });

  const next = jit((
    w: Weights,
    cache: Cache,
    token: np.Array,
    position: np.Array,
    turn: np.Array[],
  ): [np.Array, Cache] => {
    const x = np.take(w[EMBEDDING].ref, token, 0).reshape([1, 1, size]);
    const now = turn.map((table) => np.take(table, position.ref, 0));
    // There is no update in place: all of the cache is written, the new row by a comparison.
    const here = np.arange(0, capacity, 1, { dtype: np.int32 }).equal(position.ref)
      .reshape([1, capacity, 1, 1]);
    const longer: Cache = [];
    const h = hidden(x, w, config, now, (layer, q, k, v) => {
      const [keys, values] = cache[layer];
      const pair: Cache[number] = [np.where(here.ref, k, keys), np.where(here.ref, v, values)];
      longer.push([pair[0].ref, pair[1].ref]);
      return nn.dotProductAttention(q, ...pair, { keyValueSeqLengths: position.ref.add(1) });
    });
    const chosen = choose(h, w);
    tree.dispose([w, now, here, position]);
    return [chosen, longer];
  });

  const generate = async (): Promise<number[]> => {
    const tokens: number[] = [];
    let [token, cache] = first(tree.ref(weights), np.array(prompt), tree.ref(turn));
    for (;;) {
      tokens.push((await token.ref.data())[0]);
      if (tokens.length === count) break;
      const position = np.array(Int32Array.of(prompt.length + tokens.length - 1));
      [token, cache] = next(tree.ref(weights), cache, token, position, tree.ref(turn));
    }
    tree.dispose([token, cache]);
    return tokens;
  };
  return { generate, dispose: () => tree.dispose([weights, turn]) };
}

/** Generation: the cache and padding change nothing; sampling does what its options say. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { manualSeed, noGrad, tensor } from "@graft/ml";
import { generate, generateBatch, LlamaForCausalLM, sampleToken } from "@graft/ml/nn";
import { forEachDevice } from "../devices.ts";

function tiny(): LlamaForCausalLM {
  manualSeed(11);
  return new LlamaForCausalLM({
    vocab_size: 31,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 40,
    initializer_range: 0.4, // so that the choices are clear
  }).eval();
}

async function collect(tokens: AsyncIterable<number>): Promise<number[]> {
  const all: number[] = [];
  for await (const token of tokens) all.push(token);
  return all;
}

forEachDevice(
  "generate: greedy with a cache is greedy without, also in a batch",
  async (device) => {
    const model = tiny();
    const prompts = [[3, 1, 4, 1, 5], [9, 2], Array.from({ length: 17 }, (_, i) => i)];
    const rows = await generateBatch(model, prompts, { maxTokens: 6 });
    for (const [i, prompt] of prompts.entries()) {
      const { tokens, stop } = rows[i];
      assertEquals([tokens.length, stop], [6, null]);
      assertEquals(await collect(generate(model, prompt, { maxTokens: 6 })), tokens);
      // Each is the most probable one after all those before it, seen at once.
      const ids = tensor([[...prompt, ...tokens]], { dtype: "i32" });
      const best = noGrad(() => model.logits(model.forward(ids)).argmax(-1)); // [1, T]
      assertEquals([...await best.data()].slice(prompt.length - 1, -1), tokens);
    }

    // Every position is the same plan: one for the prompt, one for all the rest. A cache of one's own
    // serves any length, the model's any generation of the same size.
    using cache = model.createCache(1, 30);
    for (const [options, again] of [[{ cache }, 14], [{}, 3]] as const) {
      for (let i = 0; i < 2; i++) { // the first time also clears the cache
        await collect(generate(model, [1, 2, 3], { maxTokens: 3, ...options }));
      }
      const { built } = device.flushes;
      await collect(generate(model, [4, 5, 6, 7], { maxTokens: again, ...options }));
      assertEquals(device.flushes.built, built);
    }
  },
);

forEachDevice("generate: it ends where it has to", async () => {
  const model = tiny();
  const all = await collect(generate(model, [3, 1], { maxTokens: 8 }));
  const stop = all[4];
  const first = all.indexOf(stop);
  const options = { maxTokens: 8, stopTokens: [stop] };
  assertEquals(await collect(generate(model, [3, 1], options)), all.slice(0, first));
  const rows = await generateBatch(model, [[3, 1], [7]], options);
  assertEquals(rows[0], { tokens: all.slice(0, first), stop });
  // The model's longest sequence.
  const long = Array.from({ length: 38 }, (_, i) => i % 31);
  assertEquals((await collect(generate(model, long, { maxTokens: 9 }))).length, 2);
  assertEquals(await collect(generate(model, [1], { maxTokens: 0 })), []);
  const bad: [number[], Record<string, number>, string][] = [
    [[], {}, "prompt 0 needs 1 to 40 tokens, got 0"],
    [[31], {}, "needs tokens in [0, 31), got 31"],
    [[1], { temperature: -1 }, "temperature"],
    [[1], { topP: 0 }, "topP"],
    [[1], { topK: 1.5 }, "topK"],
    [[1], { maxTokens: -1 }, "maxTokens"],
  ];
  for (const [prompt, options, part] of bad) {
    await assertRejects(() => collect(generate(model, prompt, options)), RangeError, part);
  }
});

forEachDevice("generate: a seed decides, and training mode comes back", async () => {
  const model = tiny().train();
  const sample = (generator: number): Promise<number[]> =>
    collect(generate(model, [3, 1, 4], { maxTokens: 12, temperature: 1.5, generator }));
  const first = await sample(1);
  assertEquals(await sample(1), first);
  assert((await sample(2)).join() !== first.join());
  assert(model.modules().every((module) => module.training));
});

Deno.test("generate: sampling options", () => {
  const p = [0.5, 0.3, 0.15, 0.05];
  const cases: [Parameters<typeof sampleToken>[1], number[]][] = [
    [{}, [1, 0, 0, 0]],
    [{ temperature: 1 }, p],
    [{ temperature: 0.5 }, p.map((x) => x * x / 0.365)],
    [{ temperature: 1, topK: 2 }, [0.625, 0.375, 0, 0]],
    [{ temperature: 1, topP: 0.6 }, [0.625, 0.375, 0, 0]],
    [{ temperature: 1, topP: 0.4 }, [1, 0, 0, 0]],
    [{ temperature: 1, topP: 0.96 }, p],
    [{ repetitionPenalty: 2 }, [0, 1, 0, 0]], // token 0 has been seen
  ];
  for (const [options, expected] of cases) {
    const n = 2000, counts = [0, 0, 0, 0];
    for (let i = 0; i < n; i++) {
      counts[sampleToken(Float32Array.from(p, Math.log), options, [0], (i + 0.5) / n)]++;
    }
    counts.forEach((count, id) => {
      const what = `${JSON.stringify(options)}: token ${id} comes ${count} times of ${n}`;
      assert(Math.abs(count / n - expected[id]) < 0.001, what);
    });
  }
  assertThrows(() => sampleToken(Float32Array.of(1, NaN), {}), Error, "token 1 is NaN");
});

/** PPO's parts: rewards and advantages, the KL controllers, rollout, minibatches, what cannot be. */

import { assert, assertAlmostEquals, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Generator, init, manualSeed, noGrad, tensor } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { adapterStatus, addAdapter, inject } from "@graft/ml/peft";
import {
  accumulatePtx,
  AdaptiveKL,
  type Answer,
  answerBatch,
  FixedKL,
  generalizedAdvantages,
  klOf,
  makeExperience,
  measureAnswers,
  minibatches,
  policyLoss,
  policyPass,
  ppoBatch,
  ppoLoss,
  ppoMetrics,
  type Rollout,
  sampleAnswers,
  tokenRewards,
  valueLoss,
  ValueModel,
  whiten,
} from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";

function tiny(config: Record<string, unknown> = {}): LlamaForCausalLM {
  manualSeed(4);
  return new LlamaForCausalLM({
    vocab_size: 41,
    hidden_size: 32,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 24,
    initializer_range: 0.3,
    eos_token_id: 2,
    ...config,
  });
}

const row = (...values: number[]): Float32Array<ArrayBuffer> => Float32Array.from(values);

function rollout(tokens: number[], values = 0): Rollout {
  const of = (x: number): Float32Array<ArrayBuffer> => new Float32Array(tokens.length).fill(x);
  const [logprobs, refLogprobs, entropy] = [of(-1), of(-1.5), of(1)];
  const ended = tokens.at(-1) === 2;
  return { prompt: [1, 5], tokens, ended, logprobs, refLogprobs, entropy, values: of(values) };
}

Deno.test("PPO: advantages at λ 0 are one-step errors, at λ 1 returns less values", () => {
  const rewards = row(0.5, -1, 2), values = row(0.25, 1, -0.5);
  const one = generalizedAdvantages(rewards, values, { gamma: 0.9, lambda: 0 });
  near(one.advantages, [0.5 + 0.9 * 1 - 0.25, -1 + 0.9 * -0.5 - 1, 2 + 0.5]);
  const whole = generalizedAdvantages(rewards, values, { gamma: 0.9, lambda: 1 });
  near(whole.returns, [0.5 + 0.9 * (-1 + 0.9 * 2), -1 + 0.9 * 2, 2]);
  near(whole.advantages, Array.from(whole.returns, (r, t) => r - values[t]));
});

Deno.test("PPO: the score stands at the last token, and answers without an end pay for it", () => {
  near(tokenRewards(3, row(-1, -2), row(-2, -1), 0.1), [-0.1, 3.1]);
  const rollouts = [rollout([7, 8, 2]), rollout([7, 8, 9, 9])];
  const { rows, metrics } = makeExperience(rollouts, [1, 1], { beta: 0.1, missingEndPenalty: 4 });
  assertEquals(rows.map(({ score }) => score), [1, -3]);
  assertEquals(metrics["val/num_eos_tokens"], 1);
  const kl = (3 * 0.5 + 4 * 0.5) / 2;
  assertAlmostEquals(metrics["objective/kl"], kl, 1e-6);
  assertAlmostEquals(metrics["objective/entropy"], 3.5, 1e-6);
  assertAlmostEquals(metrics["objective/scores"], -1, 1e-6);
  assertAlmostEquals(metrics["objective/non_score_reward"], -0.1 * kl, 1e-6);
  assertAlmostEquals(metrics["objective/rlhf_reward"], -1 - 0.1 * kl, 1e-6);
});

Deno.test("PPO: whitened numbers have mean 0 and variance 1 whatever the rows; alike ones are 0", () => {
  const rows = [row(3, -1, 4), row(1), row(-5, 9)];
  const all = whiten(rows).flatMap((r) => [...r]);
  assertAlmostEquals(all.reduce((a, b) => a + b), 0, 1e-6);
  assertAlmostEquals(all.reduce((a, b) => a + b * b, 0) / (all.length - 1), 1, 1e-6);
  const kept = whiten(rows, true).flatMap((r) => [...r]);
  assertAlmostEquals(kept.reduce((a, b) => a + b) / 6, 11 / 6, 1e-6);
  assertEquals(whiten([row(0.3, 0.3), row(0.3)]), [row(0, 0), row(0)]);
  assertEquals(whiten([row(7)]), [row(0)]);
});

Deno.test("PPO: β follows the KL by Ziegler's rule, and stays where it is fixed", () => {
  const kl = new AdaptiveKL({ coefficient: 0.1, target: 6, horizon: 1000 });
  kl.update(6.6, 100); // a tenth too much
  assertAlmostEquals(kl.coefficient, 0.1 * (1 + 0.1 * 0.1), 1e-12);
  kl.update(600, 100); // limited to a fifth
  assertAlmostEquals(kl.coefficient, 0.1 * 1.01 * 1.02, 1e-12);
  kl.update(-3, 100); // an estimate can be negative
  assertAlmostEquals(kl.coefficient, 0.1 * 1.01 * 1.02 * 0.98, 1e-12);
  const again = new AdaptiveKL({ target: 6, horizon: 1000 });
  again.load(kl.state());
  assertEquals(again.coefficient, kl.coefficient);
  const fixed = new FixedKL(0.3);
  fixed.update(1e9, 5);
  assertEquals(fixed.coefficient, 0.3);
  const none = new AdaptiveKL({ horizon: 1 });
  none.update(0, 1000);
  assertEquals(none.coefficient, 0); // never below
});

Deno.test("PPO: minibatches take each row once an epoch, in an order the generator decides", () => {
  const rows = Array.from({ length: 12 }, (_, i) => i);
  const all = [...minibatches(rows, 4, 3, new Generator(5))];
  assertEquals(all.map((b) => b.length), Array(9).fill(4));
  const epochs = [0, 1, 2].map((e) => all.slice(e * 3, e * 3 + 3).flat());
  for (const epoch of epochs) assertEquals([...epoch].sort((a, b) => a - b), rows);
  assert(epochs[0].join() !== epochs[1].join() && epochs[0].join() !== rows.join());
  assertEquals([...minibatches(rows, 4, 3, new Generator(5))], all);
});

forEachDevice(
  "PPO: rollouts share a cache, and from the second on nothing new is made",
  async (device) => {
    const model = inject(tiny(), { r: 4 });
    const cache = model.createCache(3, 16 + 6);
    const generator = new Generator(3);
    const roll = async (prompts: number[][]): Promise<Rollout[]> => {
      const answers = await sampleAnswers(model, prompts, { maxTokens: 6, generator, cache });
      return await measureAnswers(model, answers, { room: { total: 10, answer: 6 } });
    };
    const first = await roll([[1, 5], [1, 6, 7], [1, 9, 9, 3]]);
    await roll([[1, 4], [1, 8, 7], [1]]);
    const { buffers, pipelines, bindings } = device.counters;
    await roll([[1, 7, 2], [1], [1, 5]]);
    assertEquals(
      [device.counters.buffers, device.counters.pipelines, device.counters.bindings],
      [buffers, pipelines, bindings],
    );
    // The reference is the model with its adapter off, and a fresh adapter adds 0.
    for (const { logprobs, refLogprobs, tokens } of first) {
      assertEquals(logprobs, refLogprobs);
      assert(tokens.length <= 6 && logprobs.every((x) => x < 0));
    }
    assertEquals(adapterStatus(model).active, ["default"]);
  },
);

Deno.test("PPO: padding equal to the end token, other rows and other room change nothing", async () => {
  const device = await init({ device: "cpu" });
  const model = inject(tiny({ eos_token_id: 0 }), { r: 4 }); // 0 is what rows are padded with
  const prompts = [[1, 5], [1, 6, 7, 8, 9, 10], [3]];
  const together = await sampleAnswers(model, prompts, { maxTokens: 8, temperature: 0 });
  assertEquals(together.some(({ tokens }) => tokens.length > 1), true);
  for (const [b, prompt] of prompts.entries()) {
    assertEquals(await sampleAnswers(model, [prompt], { maxTokens: 8, temperature: 0 }), [
      together[b],
    ]);
  }
  const given: Answer[] = [
    { prompt: [1, 5], tokens: [0], ended: true },
    { prompt: [1, 0, 6, 0], tokens: [7, 0, 0, 8, 0], ended: true },
  ];
  const value = new ValueModel(32);
  value.head.weight.assign(
    tensor(Float32Array.from({ length: 32 }, (_, i) => Math.sin(i))).reshape(1, 32),
  );
  const both = await measureAnswers(model, given, { value });
  for (const [b, answer] of given.entries()) {
    const [alone] = await measureAnswers(model, [answer], {
      value,
      room: { total: 12, answer: 5 },
    });
    for (const key of ["logprobs", "entropy", "values"] as const) near(alone[key], both[b][key]);
  }
  await device.close();
});

Deno.test("PPO: answers that are all alike teach the policy nothing, and nothing is NaN", async () => {
  const device = await init({ device: "cpu" });
  const model = inject(tiny(), { r: 4 });
  const value = new ValueModel(32);
  const answers = [0, 1].map((): Answer => ({ prompt: [1, 5], tokens: [2], ended: true }));
  const rollouts = await measureAnswers(model, answers, { value });
  const { rows } = makeExperience(rollouts, [1, 1]);
  const result = ppoLoss(model, value, ppoBatch(rows), { valueCoefficient: 0 });
  result.loss.backward();
  for (const parameter of model.trainable()) {
    assert((await parameter.grad!.data()).every((g) => g === 0));
  }
  const metrics = await ppoMetrics([result]);
  assert(Object.values(metrics).every(Number.isFinite), JSON.stringify(metrics));
  await device.close();
});

Deno.test("PPO: a value model of its own is a second adapter of the policy's weights", async () => {
  const device = await init({ device: "cpu" });
  const model = inject(tiny(), { r: 4 }, { name: "policy" });
  addAdapter(model, { r: 4 }, { name: "value" });
  const value = new ValueModel(32, { backbone: model, adapters: ["value"] });
  value.head.weight.assign(tensor(new Float32Array(32).fill(0.1)).reshape(1, 32));
  const batch = answerBatch([{ prompt: [1, 5], tokens: [7, 2], ended: true }]);
  policyPass(model, batch, { value }).values!.sum().backward();
  const grads = new Map(model.namedParameters().map(([name, p]) => [name, p.grad !== null]));
  assert(grads.entries().some(([name, has]) => name.includes(".value.") && has));
  assert(grads.entries().every(([name, has]) => !name.includes(".policy.") || !has));
  assertEquals(adapterStatus(model).active, ["policy"]);
  await device.close();
});

Deno.test("PPO: what is measured is measured without dropout, also in a backbone of its own", async () => {
  const device = await init({ device: "cpu" });
  const config = { r: 4, lora_dropout: 0.5, init_lora_weights: false };
  const model = inject(tiny(), config).train();
  const backbone = inject(tiny(), config).train();
  const value = new ValueModel(32, { backbone });
  value.head.weight.assign(tensor(new Float32Array(32).fill(0.1)).reshape(1, 32));
  const answers: Answer[] = [{ prompt: [1, 5], tokens: [7, 2], ended: true }];
  const first = await measureAnswers(model, answers, { value });
  assertEquals(await measureAnswers(model, answers, { value }), first);
  assert(first[0].logprobs[0] !== first[0].refLogprobs[0] && first[0].values[0] !== 0);
  assert(model.training && backbone.training);
  await device.close();
});

Deno.test("PPO: what cannot be is said", async () => {
  const device = await init({ device: "cpu" });
  const model = tiny();
  const two = [rollout([7, 2]), rollout([8, 2])];
  const fails: [() => unknown, string][] = [
    [() => makeExperience(two, [1]), "needs a score for each of 2 answers, got 1"],
    [() => makeExperience(two, [1, NaN]), "the score of answer 1 must be finite, got NaN"],
    [() => makeExperience(two, [Infinity, 0]), "the score of answer 0 must be finite"],
    [() => makeExperience([], []), "needs at least one rollout"],
    [
      () => makeExperience([{ ...two[0], logprobs: row(-1, NaN) }], [0]),
      "logprobs of answer 0 must be finite, got NaN at token 1",
    ],
    [() => tokenRewards(1, row(), row(), 0.1), "the answer is empty"],
    [() => tokenRewards(1, row(1), row(1, 2), 0.1), "need one length, got 1 and 2"],
    [() => generalizedAdvantages(row(1), row(1), { lambda: 1.5 }), "lambda must be in [0, 1]"],
    [
      () => answerBatch([{ prompt: [1], tokens: [], ended: false }]),
      "answer 0 is empty, it needs at least one token",
    ],
    [() => answerBatch([{ prompt: [], tokens: [1], ended: false }]), "prompt 0 is empty"],
    [
      () => answerBatch([{ prompt: [1, 5], tokens: [3, 4, 2], ended: true }], { total: 4 }),
      "room for 4 tokens",
    ],
    [() => [...minibatches([1, 2, 3], 2, 1, new Generator(0))], "a multiple of the minibatch's 2"],
    [() => new AdaptiveKL({ target: 0 }), "target must be above 0"],
    [() => new FixedKL(-1), "the coefficient must be 0 or more, got -1"],
    [() => new AdaptiveKL().update(NaN, 3), "needs a finite KL, got NaN"],
    [() => accumulatePtx(model, []), "at least one batch"],
    [() => policyLoss({ ...losses(2), mask: tensor([1, 0, 1]).ne(0) }), "mask [3]"],
    [() => policyLoss(losses(2), { clip: 0 }), "clip must be above 0"],
    [
      () =>
        valueLoss({
          ...losses(2),
          values: tensor([1]),
          oldValues: tensor([1, 2]),
          returns: tensor([1, 2]),
        }),
      "needs tensors of one shape",
    ],
    [() => new ValueModel(32, { backbone: model, adapters: ["none"] }), 'no adapter "none"'],
    [
      () => new ValueModel(32).forward(tensor([[1]], { dtype: "i32" })),
      "the policy's hidden states",
    ],
  ];
  for (const [fn, part] of fails) assertThrows(fn, Error, part);
  await assertRejects(
    () => sampleAnswers(model, [Array(25).fill(5)], { maxTokens: 4 }),
    RangeError,
    "needs 1 to 24 tokens, got 25",
  );
  const broken = noGrad(() => tensor(NaN));
  const loss = Object.fromEntries(
    ["loss", "policy", "value", "entropy", "approxKL", "clipFraction", "ratio", "valueClipFraction"]
      .map((key) => [key, broken]),
  ) as unknown as Parameters<typeof ppoMetrics>[0][number];
  await assertRejects(() => ppoMetrics([loss]), Error, "the loss of minibatch 1 is NaN");
  // A prompt that leaves room for two tokens gets an answer of two, the last of which is never read.
  const [full] = await sampleAnswers(model, [Array(23).fill(5)], { maxTokens: 4, stopTokens: [] });
  assertEquals([full.tokens.length, full.ended], [1, false]);
  const [measured] = await measureAnswers(model, [full], {});
  assertEquals(klOf(measured), 0);
  await device.close();
});

function losses(n: number): Parameters<typeof policyLoss>[0] {
  const x = tensor(new Float32Array(n).fill(-1));
  return { logprobs: x, oldLogprobs: x, advantages: x, mask: x.ne(0) };
}

function near(got: ArrayLike<number>, want: ArrayLike<number>): void {
  assertEquals(got.length, want.length);
  for (let i = 0; i < want.length; i++) assertAlmostEquals(got[i], want[i], 1e-5);
}

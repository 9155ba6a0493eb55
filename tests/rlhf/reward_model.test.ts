/** Reward models: of every family, in files, normalised, and able to learn a rule. */

import { assert, assertAlmostEquals, assertEquals, assertRejects } from "@std/assert";
import { init, manualSeed, noGrad } from "@graft/ml";
import {
  BertForSequenceClassification,
  GPT2ForSequenceClassification,
  GPT2LMHeadModel,
  LlamaForCausalLM,
  LlamaForSequenceClassification,
  loadModel,
  MistralForSequenceClassification,
  QuantizedParameter,
  Qwen2ForSequenceClassification,
  Qwen3ForSequenceClassification,
  RobertaForSequenceClassification,
} from "@graft/ml/nn";
import { AdamW, clipGradNorm } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import { type RankedAnswers, rankingLoss, type RewardBackbone, RewardModel } from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";

const LLAMA = {
  vocab_size: 40,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  max_position_embeddings: 32,
  initializer_range: 0.3,
  num_labels: 1,
};
const GPT2 = { vocab_size: 40, n_embd: 16, n_layer: 1, n_head: 2, n_positions: 32, num_labels: 1 };

const FAMILIES: Readonly<Record<string, () => RewardBackbone>> = {
  llama: () => new LlamaForSequenceClassification({ ...LLAMA, model_type: "llama" }),
  mistral: () =>
    new MistralForSequenceClassification({ ...LLAMA, model_type: "mistral", sliding_window: 6 }),
  qwen2: () => new Qwen2ForSequenceClassification({ ...LLAMA, model_type: "qwen2" }),
  qwen3: () => new Qwen3ForSequenceClassification({ ...LLAMA, model_type: "qwen3", head_dim: 8 }),
  gpt2: () =>
    new GPT2ForSequenceClassification({ ...GPT2, model_type: "gpt2", initializer_range: 0.3 }),
  bert: () => new BertForSequenceClassification({ ...LLAMA, model_type: "bert" }),
  roberta: () => new RobertaForSequenceClassification({ ...LLAMA, model_type: "roberta" }),
};

const ROWS = [[5, 6, 7, 2], [8, 9, 10, 11, 12, 13, 2], [14, 2, 2]];

async function scoresOf(model: RewardModel, rows = ROWS, width?: number): Promise<number[]> {
  return [...await noGrad(() => model.scores(rows, width)).data()];
}

function close(got: readonly number[], want: readonly number[], what: string): void {
  got.forEach((x, i) => assertAlmostEquals(x, want[i], 1e-5, `${what}, row ${i}`));
}

// Layouts and files, the same on every device; the scores themselves are in parity/rlhf.test.ts.
Deno.test("reward model: every family, with and without LoRA, padded, normalised, in files", async (t) => {
  const device = await init({ device: "cpu" });
  for (const [name, make] of Object.entries(FAMILIES)) {
    await t.step(name, async () => {
      manualSeed(5);
      const folder = await Deno.makeTempDir();
      const model = new RewardModel(make().eval());
      const scores = await scoresOf(model);
      assert(new Set(scores.map((x) => x.toFixed(4))).size === 3, `they differ: ${scores}`);
      // Padding is of no account, be it the end token's number or any other, here 0.
      close(await scoresOf(model, ROWS, 29), scores, "padded");
      for (let i = 0; i < 3; i++) close(await scoresOf(model, [ROWS[i]], 7), [scores[i]], "alone");

      await model.normalize(ROWS);
      const mean = scores.reduce((a, b) => a + b) / 3;
      const normalized = scores.map((x) => x - mean);
      close(await scoresOf(model), normalized, "normalised");
      const rewards = await model.reward(
        ROWS.map((row) => ({ prompt: row.slice(0, 2), tokens: row.slice(2), ended: true })),
        { batch: 2 },
      );
      close(rewards, normalized, "as a reward");

      await model.savePretrained(folder);
      const again = await RewardModel.fromPretrained(folder);
      close(await scoresOf(again), normalized, "loaded");
      assert(
        (await loadModel(folder)).constructor === make().constructor,
        "and it is a model as any other",
      );

      const packed = await RewardModel.fromPretrained(folder, { quantize: "int8" });
      const kept = packed.model.namedParameters()
        .filter(([key, p]) => /score|classifier/.test(key) && p instanceof QuantizedParameter);
      assertEquals(kept, [], "the head stays as it is");
      const rough = await scoresOf(packed);
      rough.forEach((x, i) => assertAlmostEquals(x, normalized[i], 0.1, "in 8 bits"));
      assert(rough.some((x, i) => x !== normalized[i]));

      // The base goes with the adapter, its head does not: the adapter has its own.
      inject(again.model, { r: 2, task_type: "SEQ_CLS", target_modules: "all-linear" });
      const { loss } = rankingLoss(again, [{ prompt: [1], answers: ROWS }]);
      const optimizer = new AdamW(again.trainable(), { lr: 0.1 });
      loss.backward();
      await optimizer.step();
      again.bias = 0.25;
      const learnt = await scoresOf(again);
      assert(learnt.some((x, i) => Math.abs(x - normalized[i]) > 1e-2), "it has learnt");
      const adapter = await Deno.makeTempDir();
      await again.savePretrained(adapter);
      const third = await RewardModel.fromPretrained(folder, { adapter });
      close(await scoresOf(third), learnt, "with its adapter");
      for (const path of [folder, adapter]) await Deno.remove(path, { recursive: true });
    });
  }
  await device.close();
});

Deno.test("reward model: a language model's folder gives the decoder, the head starts fresh", async () => {
  const device = await init({ device: "cpu" });
  manualSeed(1);
  for (const language of [new LlamaForCausalLM(LLAMA), new GPT2LMHeadModel(GPT2).eval()]) {
    const folder = await Deno.makeTempDir();
    await language.savePretrained(folder);
    const { model } = await RewardModel.fromPretrained(folder);
    const mine = model.stateDict();
    for (const [key, variable] of language.stateDict()) {
      if (key === "lm_head.weight") continue;
      assertEquals(await mine.get(key)!.data(), await variable.data(), key);
    }
    assertEquals(mine.get("score.weight")!.shape, [1, 16]);
    assert(!mine.has("lm_head.weight"));
    await Deno.writeTextFile(`${folder}/reward_model.json`, '{"bias": "high"}');
    await assertRejects(
      () => RewardModel.fromPretrained(folder),
      TypeError,
      `${folder}/reward_model.json needs a number bias, has "high"`,
    );
    await Deno.remove(folder, { recursive: true });
  }
  await device.close();
});

/** Answers of a few tokens, ranked by a rule that is a function of the text: how many are below 20. */
function ranked(from: number, count: number): RankedAnswers[] {
  return Array.from({ length: count }, (_, i) => {
    const answers = Array.from({ length: 4 }, (_, k) => {
      const seed = (from + i) * 4 + k;
      const length = 3 + seed % 5;
      return [
        ...Array.from({ length }, (_, t) => 3 + (seed * 17 + t * t * 5 + t * seed * 7) % 37),
        2,
      ];
    });
    const liked = answers.map((answer) => answer.filter((id) => id < 20).length);
    return {
      prompt: [1, 3 + (from + i) % 30],
      answers,
      ranks: liked.map((n) => liked.filter((other) => other > n).length),
    };
  }).filter(({ ranks }) => new Set(ranks).size > 1);
}

forEachDevice(
  "reward model: ranks held-out answers right by a rule of the text",
  async (device) => {
    manualSeed(2);
    const model = new LlamaForSequenceClassification({ ...LLAMA, initializer_range: 0.1 });
    const reward = new RewardModel(model);
    const optimizer = new AdamW(reward.trainable(), { lr: 0.01 });
    const examples = ranked(0, 100), heldOut = ranked(1000, 30);
    const accuracy = async (): Promise<number> =>
      await noGrad(() => rankingLoss(reward, heldOut, { width: 16 })).accuracy.item();
    const before = await accuracy();
    // Eight prompts a step; the pairs differ in number, so a software GPU compiles many plans: fewer steps.
    const steps = device.name === "cpu" ? 48 : 12;
    for (let step = 0; step < steps; step++) {
      const at = step * 8 % (examples.length - 8);
      const { loss } = rankingLoss(reward, examples.slice(at, at + 8), { width: 16 });
      loss.backward();
      clipGradNorm(optimizer.parameters, 1);
      await optimizer.step();
      optimizer.zeroGrad();
    }
    const after = await accuracy();
    assert(before < 0.7 && after >= 0.8, `held-out pairs ranked right: ${before}, then ${after}`);
  },
);

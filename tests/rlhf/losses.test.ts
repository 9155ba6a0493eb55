/** What losses promise beside their formula: where they start, what does not matter to them. */

import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { init, manualSeed, noGrad } from "@graft/ml";
import { DataLoader, mix, pack } from "@graft/ml/data";
import { type CausalLM, GPT2LMHeadModel, LlamaForCausalLM } from "@graft/ml/nn";
import { inject, injectPrompt } from "@graft/ml/peft";
import { bestOfN, dpoLoss, groupAdvantages, grpoLoss, sftLoss } from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";

const VOCABULARY = 41;

function llama(): LlamaForCausalLM {
  manualSeed(3);
  return new LlamaForCausalLM({
    vocab_size: VOCABULARY,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 24,
    initializer_range: 0.4,
    eos_token_id: 2,
  });
}

function gpt2(): GPT2LMHeadModel {
  manualSeed(3);
  return new GPT2LMHeadModel({
    vocab_size: VOCABULARY,
    n_embd: 16,
    n_layer: 1,
    n_head: 2,
    n_positions: 24,
    initializer_range: 0.4,
  }).eval();
}

function onCpu(name: string, fn: () => Promise<void>): void {
  Deno.test(name, async () => {
    const device = await init({ device: "cpu" });
    try {
      await fn();
    } finally {
      await device.close();
    }
  });
}

/** A text of `length` tokens that depends on `seed`. */
function text(length: number, seed: number): number[] {
  return Array.from({ length }, (_, i) => 3 + (seed * 13 + i * i * 7 + i) % (VOCABULARY - 3));
}

const DOCUMENTS = [9, 5, 3, 12, 7, 4].map((length, seed) => ({
  ids: Int32Array.from(text(length, seed)),
  promptLength: seed % 3,
}));

async function lossOf(model: CausalLM, separate: boolean): Promise<number> {
  const dataset = pack(DOCUMENTS, 20, 0, { separate });
  const [batch] = new DataLoader(dataset, { batchSize: dataset.length, shuffle: false, epochs: 1 });
  assert(dataset.length < DOCUMENTS.length, "documents share rows");
  return await noGrad(() => sftLoss(model, batch)).item();
}

// The same kernels run on webgpu in parity/rlhf.test.ts.
onCpu("SFT: documents in a row are learnt as if each stood alone", async () => {
  const prefix = { peft_type: "PREFIX_TUNING", num_virtual_tokens: 3 } as const;
  const prompted = await injectPrompt(llama(), prefix, { start: "random" });
  for (const model of [llama(), gpt2(), prompted]) {
    let sum = 0, count = 0;
    for (const document of DOCUMENTS) {
      const [batch] = new DataLoader(pack([document], 20), { batchSize: 1, epochs: 1 });
      sum += await noGrad(() => model.loss(batch)).item() * batch.targetCount;
      count += batch.targetCount;
    }
    const packed = await lossOf(model, true);
    assertAlmostEquals(packed, sum / count, 1e-5, model.constructor.name);
    const mixed = await lossOf(model, false);
    assert(Math.abs(mixed - sum / count) > 1e-3, "and otherwise not");
  }
});

Deno.test("SFT: general text is mixed in, separate or not", () => {
  const main = pack(DOCUMENTS, 20, 0, { separate: true });
  const general = pack([{ ids: Int32Array.from(text(200, 9)), promptLength: 1 }], 20);
  const mixed = mix(main, general, 0.5);
  const [batch] = new DataLoader(mixed, { batchSize: mixed.length, shuffle: false, epochs: 1 });
  const rows = Array.from(
    { length: mixed.length },
    (_, i) => new Set(batch.documents!.subarray(i * 20, (i + 1) * 20)).size,
  );
  assertEquals(rows.filter((count) => count === 1).length, main.length, "general rows are whole");
  assertEquals(mixed.length, 2 * main.length);
});

// One test a device, so that the steps share what is compiled.
forEachDevice("DPO and GRPO: where they start", async (_, t) => {
  const model = inject(llama(), { r: 4, lora_dropout: 0.5, target_modules: "all-linear" });
  await t.step("DPO: the first loss is ln 2", () => checkFirstLoss(model));
  await t.step("GRPO: answers that are all alike teach nothing", () => checkAlike(model));
});

async function checkFirstLoss(model: CausalLM): Promise<void> {
  const pairs = [4, 7].map((length, i) => ({
    prompt: text(3 + i, i),
    chosen: [...text(length, 5 + i), 2],
    rejected: text(12 - length, 8 + i),
  }));
  const { loss, ...metrics } = dpoLoss(model, pairs);
  loss.backward();
  assertAlmostEquals(await loss.item(), Math.LN2, 1e-6);
  assertEquals(await metrics["rewards/margins"].item(), 0);
  assertEquals(await metrics["rewards/accuracies"].item(), 0);
  // The margin grows along the gradient, which is not zero.
  const grads = await Promise.all(
    model.trainable().map(async (p) => Math.max(...(await p.grad!.data()).map(Math.abs))),
  );
  assert(Math.max(...grads) > 1e-4);
  for (const p of model.trainable()) p.grad = null;
}

async function checkAlike(model: CausalLM): Promise<void> {
  const scores = [0.1, 0.1, 0.1, 0.1]; // their mean is not .1 in binary
  const advantages = groupAdvantages(scores, 4);
  assertEquals([...advantages], [0, 0, 0, 0]);
  const rows = scores.map((_, i) => ({
    prompt: text(3, 1),
    tokens: text(4, 2), // the very same answer
    ended: false,
    advantage: advantages[i],
  }));
  const { loss } = grpoLoss(model, rows);
  loss.backward();
  assertEquals(Math.abs(await loss.item()), 0);
  for (const p of model.trainable()) {
    assert((await p.grad!.data()).every((g) => g === 0), `${p.name}`);
  }
}

Deno.test("GRPO: advantages are those of the group", () => {
  const all = groupAdvantages([1, 2, 6, 100, 100, 400], 3);
  assertAlmostEquals(all[0], -2 / (Math.sqrt(7) + 1e-4), 1e-12);
  assertAlmostEquals(all[3] + all[4] + all[5], 0, 1e-12);
  assertEquals([...groupAdvantages([1, 2, 6], 3, { scale: false })], [-2, -1, 3]);
});

onCpu("best of n: the answer that the reward likes most", async () => {
  const prompts = [text(3, 1), text(5, 2)];
  const seen: number[] = [];
  const best = await bestOfN(
    llama(),
    prompts,
    (answers) => {
      const scores = answers.map(({ tokens }) => tokens.filter((id) => id % 2 === 0).length);
      seen.push(...scores);
      return Promise.resolve(scores);
    },
    { n: 5, maxTokens: 6, generator: 4 },
  );
  best.forEach(({ answer, score, answers, scores }, p) => {
    const own = seen.slice(p * 5, (p + 1) * 5);
    assertEquals(scores, own);
    assertEquals(score, Math.max(...own));
    assertEquals(answer, answers[own.indexOf(score)], "of several, the first");
    assertEquals(answer.prompt, prompts[p]);
  });
  assert(best.some(({ scores }) => Math.max(...scores) > Math.min(...scores)), "there is a choice");
});

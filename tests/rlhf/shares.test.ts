/** A batch in two halves, one after the other or on two ranks, has the gradient of the whole. */

import { assert, assertEquals } from "@std/assert";
import { init, manualSeed, type Tensor } from "@graft/ml";
import { DataLoader, pack } from "@graft/ml/data";
import { DistributedDataParallel } from "@graft/ml/dist";
import { LlamaForCausalLM, LlamaForSequenceClassification, type Module } from "@graft/ml/nn";
import { inject } from "@graft/ml/peft";
import {
  dpoLoss,
  grpoLoss,
  type GRPORow,
  type PreferencePair,
  type RankedAnswers,
  rankingLoss,
  RewardModel,
  sftLoss,
} from "@graft/ml/rlhf";
import { distance, ranks } from "../dist/ddp_ranks.ts";

const CONFIG = {
  vocab_size: 33,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  initializer_range: 0.3,
};

/** A loss over rows of which there are four. */
interface Share<M extends Module = Module> {
  make(): M;
  /** Of rows from..to: the loss, divided by `count` if given. */
  loss(model: M, from: number, to: number, count?: number): Tensor;
  /** What the mean of these rows is over. */
  weight(from: number, to: number): number;
}

function text(length: number, seed: number): number[] {
  return Array.from({ length }, (_, t) => 3 + (seed * 7 + t * 5) % 30);
}

/** The first half has fewer tokens than the second. */
const LENGTHS = [1, 2, 6, 4];
const PAIRS = LENGTHS.map((n, i): PreferencePair => ({
  prompt: [1, 4 + i],
  chosen: text(n, i),
  rejected: text(7 - n, i + 9),
}));
const ROWS = LENGTHS.map((n, i): GRPORow => ({
  prompt: [1, 4 + i],
  tokens: text(n, i),
  ended: true,
  advantage: Math.sin(1 + i),
}));
const RANKED = LENGTHS.map((n, i): RankedAnswers => ({
  prompt: [1, 4 + i],
  answers: [text(n, i), text(8 - n, i + 4), text(3, i + 8)],
  ranks: i === 3 ? [0, 0, 0] : [1, 0, i % 2], // of the last nothing is learnt
}));
const TEXTS = LENGTHS.map((n, i) => ({
  ids: Int32Array.from([1, 4 + i, ...text(n, i)]),
  promptLength: 2,
}));

function language(): LlamaForCausalLM {
  manualSeed(3);
  const model = inject(new LlamaForCausalLM(CONFIG), { r: 4, init_lora_weights: false });
  return model;
}

function share<M extends Module>(share: Share<M>): Share {
  return share as unknown as Share;
}

const SHARES: Readonly<Record<string, Share>> = {
  SFT: share({
    make: language,
    loss: (model, from, to, count) => {
      const dataset = pack(TEXTS.slice(from, to), 8, 0, { separate: true });
      const [batch] = new DataLoader(dataset, { batchSize: dataset.length, epochs: 1 });
      return sftLoss(model, batch, { count });
    },
    weight: (from, to) => LENGTHS.slice(from, to).reduce((a, b) => a + b),
  }),
  "reward model": share({
    make: () => {
      manualSeed(3);
      const model = new LlamaForSequenceClassification({ ...CONFIG, num_labels: 1 });
      return new RewardModel(
        inject(model, { r: 4, task_type: "SEQ_CLS", init_lora_weights: false }),
      );
    },
    loss: (model, from, to, count) => rankingLoss(model, RANKED.slice(from, to), { count }).loss,
    weight: (from, to) => Math.min(to, 3) - from,
  }),
  DPO: share({
    make: language,
    loss: (model, from, to, count) => dpoLoss(model, PAIRS.slice(from, to), { count }).loss,
    weight: (from, to) => to - from,
  }),
  GRPO: share({
    make: language,
    loss: (model, from, to, count) => grpoLoss(model, ROWS.slice(from, to), { count }).loss,
    weight: (from, to) => LENGTHS.slice(from, to).reduce((a, b) => a + b),
  }),
};

async function gradients(model: Module): Promise<number[]> {
  const all: number[] = [];
  for (const p of model.trainable()) {
    all.push(...await p.grad!.data() as Float32Array);
    p.grad = null;
  }
  return all;
}

Deno.test({
  name: "rlhf: halves of a batch, in a row or on two ranks, have the gradient of the whole",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async (t) => {
    for (const [name, { make, loss, weight }] of Object.entries(SHARES)) {
      await t.step(name, async () => {
        const device = await init({ device: "cpu" });
        const model = make();
        loss(model, 0, 4).backward();
        const whole = await gradients(model);
        assert(whole.some((g) => Math.abs(g) > 1e-4), "there is a gradient");
        const count = weight(0, 4);
        for (const [from, to] of [[0, 2], [2, 4]]) loss(model, from, to, count).backward();
        const halves = distance(await gradients(model), whole);
        assert(halves < 1e-5, `in a row they differ by ${halves}`);
        await device.close();

        const results = await ranks(2, async ({ group, here }) => {
          here();
          using ddp = new DistributedDataParallel(make(), group);
          const [from, to] = group.rank === 0 ? [0, 2] : [2, 4];
          ddp.weigh(weight(from, to));
          loss(ddp.module, from, to).backward();
          return await gradients(ddp.module);
        });
        assertEquals(results[0], results[1], "ranks hold the same bits");
        const difference = distance(results[0], whole);
        assert(difference < 1e-5, `on two ranks they differ by ${difference}`);
      });
    }
  },
});

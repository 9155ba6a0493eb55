/** PPO-ptx on two ranks, each with its share of the answers and texts, is PPO-ptx on one device. */

import { assert, assertEquals } from "@std/assert";
import { init, manualSeed, type Variable } from "@graft/ml";
import { allGatherValues, DistributedDataParallel, type ProcessGroup } from "@graft/ml/dist";
import { LlamaForCausalLM, Module } from "@graft/ml/nn";
import { AdamW, clipGradNorm } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import {
  accumulatePtx,
  AdaptiveKL,
  gatherExperience,
  type JobRanks,
  makeExperience,
  ppoBatch,
  ppoLoss,
  type Rollout,
  ValueModel,
} from "@graft/ml/rlhf";
import { asRanks, distance, ranks } from "../dist/ddp_ranks.ts";

/** What is trained, as one module. */
class PolicyAndValue extends Module {
  policy: LlamaForCausalLM = inject(
    new LlamaForCausalLM({
      vocab_size: 33,
      hidden_size: 16,
      intermediate_size: 24,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      initializer_range: 0.3,
    }),
    { r: 4, target_modules: ["q_proj", "v_proj"] },
  );
  value: ValueModel = new ValueModel(16);
}

/** Answers of 1 to 4 tokens: the first half has fewer tokens than the second. */
const ROLLOUTS: readonly Rollout[] = [1, 2, 4, 3].map((length, b) => {
  const of = (x: number): Float32Array<ArrayBuffer> =>
    Float32Array.from({ length }, (_, t) => Math.sin(x + 3 * b + 5 * t));
  const tokens = Array.from({ length }, (_, t) => 3 + (b * 7 + t * 5) % 30);
  return {
    prompt: [1, 4 + b],
    tokens,
    ended: b !== 2,
    logprobs: of(1).map((x) => x - 3.5),
    refLogprobs: of(2).map((x) => x - 4),
    entropy: of(3),
    values: of(4),
  };
});

const SCORES = [2, -1, 0.5, 4];

const TEXTS = [[1, 8, 9, -100], [1, 5, 6, 7], [1, 3, 4, 2], [1, 9, 2, -100]].map((row) => ({
  inputs: Int32Array.from(row, (id) => Math.max(id, 0)),
  targets: Int32Array.from([...row.slice(1), -100]),
  shape: [1, 4] as const,
}));

function ranksOf(group: ProcessGroup): JobRanks {
  return { rank: group.rank, gather: (value) => allGatherValues(group, value) };
}

const ROOM = { total: 8, answer: 4 };

async function values(variables: readonly Variable[]): Promise<number[]> {
  const all: number[] = [];
  for (const variable of variables) all.push(...await variable.data() as Float32Array);
  return all;
}

Deno.test({
  name: "PPO: two ranks with unequal shares are one device",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const device = await init({ device: "cpu" });
    manualSeed(3);
    const one = new PolicyAndValue();
    const optimizer = new AdamW(one.trainable(), { lr: 0.02 });
    const kl = new AdaptiveKL({ target: 1, horizon: 4 });
    for (let step = 0; step < 3; step++) {
      const { rows, metrics } = makeExperience(ROLLOUTS, SCORES, { beta: kl.coefficient });
      kl.update(metrics["objective/kl"], ROLLOUTS.length);
      ppoLoss(one.policy, one.value, ppoBatch(rows, ROOM)).loss.backward();
      accumulatePtx(one.policy, TEXTS, 0.5);
      clipGradNorm(optimizer.parameters, 1);
      await optimizer.step();
      optimizer.zeroGrad();
    }
    const expected = [kl.coefficient, ...await values(one.trainable())];
    await device.close();

    const results = await ranks(2, async ({ group, here }) => {
      here();
      manualSeed(3);
      using ddp = new DistributedDataParallel(new PolicyAndValue(), group);
      const { policy, value } = ddp.module;
      const optimizer = new AdamW(ddp.module.trainable(), { lr: 0.02 });
      // The second rank has three of the four answers.
      const [from, to] = group.rank === 0 ? [0, 1] : [1, 4];
      const rollouts = ROLLOUTS.slice(from, to), scores = SCORES.slice(from, to);
      const kl = new AdaptiveKL({ target: 1, horizon: 4 });
      for (let step = 0; step < 3; step++) {
        const { rows, metrics } = await gatherExperience(ranksOf(group), rollouts, scores, {
          beta: kl.coefficient,
        });
        kl.update(metrics["objective/kl"], ROLLOUTS.length);
        here();
        const batch = ppoBatch(rows, ROOM);
        ddp.weigh(batch.answers.count); // each answer's token weighs the same
        ppoLoss(policy, value, batch).loss.backward();
        const texts = TEXTS.slice(2 * group.rank, 2 * group.rank + 2); // as many on every rank
        ddp.weigh(texts.flatMap(({ targets }) => [...targets]).filter((t) => t !== -100).length);
        accumulatePtx(policy, texts, 0.5);
        clipGradNorm(optimizer.parameters, 1);
        await optimizer.step();
        optimizer.zeroGrad();
      }
      return [kl.coefficient, ...await values(ddp.module.trainable())];
    });
    assertEquals(results[0], results[1], "ranks hold the same bits");
    const difference = distance(results[0], expected);
    assert(difference < 1e-5, `parameters differ by ${difference}`);
  },
});

Deno.test({
  name: "PPO: scores that are wrong on one rank stop all of them, and say whose they are",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const results = await asRanks(
      2,
      async ({ group }) =>
        await gatherExperience(
          ranksOf(group),
          ROLLOUTS,
          group.rank === 0 ? SCORES : [1, NaN, 2, 3],
        ),
    );
    for (const result of results) {
      assert(result.status === "rejected");
      assertEquals(
        result.reason.message,
        "rank 1: gatherExperience: the score of answer 1 must be finite, got NaN",
      );
    }
  },
});

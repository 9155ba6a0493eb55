/** Bad input to the losses: each a clear error, or a rule that its documentation states. */

import { assertAlmostEquals, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { init, manualSeed, noGrad, tensor } from "@graft/ml";
import { type CausalLM, GPT2LMHeadModel, LlamaForSequenceClassification } from "@graft/ml/nn";
import { inject } from "@graft/ml/peft";
import {
  type Answer,
  answerBatch,
  bestOfN,
  checkScores,
  dpoLoss,
  groupAdvantages,
  grpoLoss,
  type GRPORow,
  measureAnswers,
  policyPass,
  type PreferencePair,
  rankingLoss,
  readRankings,
  RewardModel,
  sampleAnswers,
  sftLoss,
  ValueModel,
} from "@graft/ml/rlhf";

const END = 2;

interface Models {
  readonly plain: CausalLM;
  readonly adapted: CausalLM;
  readonly reward: RewardModel;
}

// GPT-2's positions end with its context: what goes beyond would fail.
function gpt2(): GPT2LMHeadModel {
  return new GPT2LMHeadModel({
    vocab_size: 20,
    n_embd: 8,
    n_layer: 1,
    n_head: 2,
    n_positions: 10,
    eos_token_id: END,
  }).eval();
}

function models(): Models {
  manualSeed(1);
  const adapted = inject(gpt2(), { r: 2, target_modules: ["c_attn"] });
  const reward = new LlamaForSequenceClassification({
    vocab_size: 20,
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 10,
    initializer_range: 0.5,
    num_labels: 1,
  });
  return { plain: gpt2(), adapted, reward: new RewardModel(reward) };
}

const PAIR: PreferencePair = { prompt: [1, 5], chosen: [6, END], rejected: [7, 8, END] };
const ROW: GRPORow = { prompt: [1, 5], tokens: [6, 7, END], ended: true, advantage: 1 };
const LONG = Array<number>(11).fill(4);

type Case = readonly [name: string, call: (models: Models) => unknown, message: RegExp];

const CASES: readonly Case[] = [
  [
    "scores are NaN",
    () => checkScores("reward", [1, NaN], 2),
    /score of answer 1 .*finite, got NaN/,
  ],
  [
    "a score that is none",
    () => checkScores("reward", [1, null as never], 2),
    /score of answer 1 .*finite, got null/,
  ],
  ["scores too few", () => checkScores("reward", [1], 2), /score for each of 2 answers, got 1/],
  ["a group of one", () => groupAdvantages([1, 2], 1), /2 answers or more, got size 1/],
  ["half a group", () => groupAdvantages([1, 2, 3], 2), /whole groups of 2, got 3/],
  ["a group with NaN", () => groupAdvantages([1, NaN], 2), /finite, got NaN/],

  ["DPO, no pair", ({ adapted }) => dpoLoss(adapted, []), /at least one pair/],
  ["DPO, no reference", ({ plain }) => dpoLoss(plain, [PAIR]), /no adapters.*options\.reference/],
  [
    "DPO, an unknown adapter as reference",
    ({ adapted }) => dpoLoss(adapted, [PAIR], { reference: ["sft"] }),
    /no adapter "sft"; there is default/,
  ],
  [
    "DPO, an empty answer",
    ({ adapted }) => dpoLoss(adapted, [PAIR, { ...PAIR, rejected: [] }]),
    /rejected of pair 1 is empty.*has its end/,
  ],
  [
    "DPO, an empty prompt",
    ({ adapted }) => dpoLoss(adapted, [{ ...PAIR, prompt: [] }]),
    /prompt of pair 0 is empty/,
  ],
  [
    "DPO, answers alike",
    ({ adapted }) => dpoLoss(adapted, [{ ...PAIR, rejected: PAIR.chosen }]),
    /both answers of pair 0 are the same/,
  ],
  [
    "DPO, longer than the context",
    ({ adapted }) => dpoLoss(adapted, [{ ...PAIR, prompt: LONG }]),
    /the chosen answer of pair 0 is of 13 tokens .*context of 10/,
  ],
  [
    "DPO, a token outside",
    ({ adapted }) => dpoLoss(adapted, [{ ...PAIR, rejected: [20] }]),
    /the rejected answer of pair 0 needs tokens in \[0, 20\), got 20/,
  ],
  [
    "DPO, β 0",
    ({ adapted }) => dpoLoss(adapted, [PAIR], { beta: 0 }),
    /beta must be above 0, got 0/,
  ],

  ["GRPO, no row", ({ plain }) => grpoLoss(plain, []), /at least one answer/],
  [
    "GRPO, an empty answer",
    ({ plain }) => grpoLoss(plain, [{ ...ROW, tokens: [] }]),
    /answer 0 is empty/,
  ],
  [
    "GRPO, an advantage that is NaN",
    ({ plain }) => grpoLoss(plain, [ROW, { ...ROW, advantage: NaN }]),
    /advantage of row 1 .*finite, got NaN/,
  ],
  [
    "GRPO, logprobs of some",
    ({ plain }) => grpoLoss(plain, [{ ...ROW, logprobs: new Float32Array(3) }, ROW]),
    /logprobs of all rows or of none; see row 1/,
  ],
  [
    "GRPO, logprobs too few",
    ({ plain }) => grpoLoss(plain, [{ ...ROW, logprobs: new Float32Array(2) }]),
    /row 0 needs logprobs of 3 tokens, got 2/,
  ],
  [
    "GRPO, no reference",
    ({ plain }) => grpoLoss(plain, [ROW], { beta: 0.1 }),
    /row 0 needs refLogprobs of 3 tokens, got none/,
  ],
  [
    "GRPO, longer than the context",
    ({ plain }) => grpoLoss(plain, [{ ...ROW, prompt: LONG }]),
    /row 0 is of 14 tokens .*context of 10/,
  ],

  [
    "a policy's pass, longer than the context",
    ({ plain }) => policyPass(plain, answerBatch([{ ...ROW, prompt: LONG }])),
    /have 14 tokens, and the model's context 10/,
  ],

  ["ranking, no prompt", ({ reward }) => rankingLoss(reward, []), /0 prompts have no pair/],
  [
    "ranking, all tie",
    ({ reward }) => rankingLoss(reward, [{ prompt: [1], answers: [[5], [6]], ranks: [3, 3] }]),
    /1 prompts have no pair to learn from: all answers tie/,
  ],
  [
    "ranking, one answer",
    ({ reward }) => rankingLoss(reward, [{ prompt: [1], answers: [[5]] }]),
    /prompt 0 needs 2 answers or more, has 1/,
  ],
  [
    "ranking, an empty answer",
    ({ reward }) => rankingLoss(reward, [{ prompt: [1], answers: [[5], []] }]),
    /answer 1 to prompt 0 is empty/,
  ],
  [
    "ranking, ranks too few",
    ({ reward }) => rankingLoss(reward, [{ prompt: [1], answers: [[5], [6]], ranks: [0] }]),
    /prompt 0 needs a rank for each of 2 answers, got \[0\]/,
  ],
  [
    "ranking, a margin that is NaN",
    ({ reward }) => rankingLoss(reward, [{ prompt: [1], answers: [[5], [6]], margin: NaN }]),
    /margin of prompt 0 must be finite/,
  ],
  [
    "reward, longer than the context",
    ({ reward }) => reward.scores([[1], LONG]),
    /row 1 is of 11 tokens .*context of 10/,
  ],
  ["reward, an empty row", ({ reward }) => reward.scores([[1], []]), /row 1 is empty/],
  ["reward, too narrow", ({ reward }) => reward.scores([[1, 2, 3]], 2), /a row has 3 tokens.* 2/],
  [
    "reward, padding within",
    ({ reward }) => sftTokens(reward, [1, 0, 1]),
    /row 0 has padding between its tokens/,
  ],
  ["reward, padding alone", ({ reward }) => sftTokens(reward, [0, 0, 0]), /row 0 has no token/],

  [
    "SFT, longer than the context",
    ({ plain }) => sftLoss(plain, batchOf(11)),
    /text of 11 tokens is longer than the model's context of 10/,
  ],
  [
    "SFT, nothing to learn",
    ({ plain }) => sftLoss(plain, { ...batchOf(4), targets: new Int32Array(4).fill(-100) }),
    /no target that counts/,
  ],
  ["SFT, a count of 0", ({ plain }) => sftLoss(plain, batchOf(4), { count: 0 }), /count must be 1/],
];

function batchOf(
  length: number,
): { inputs: Int32Array<ArrayBuffer>; targets: Int32Array<ArrayBuffer>; shape: [number, number] } {
  const ids = new Int32Array(length).fill(5);
  return { inputs: ids, targets: ids, shape: [1, length] };
}

function sftTokens({ model }: RewardModel, mask: number[]): unknown {
  return (model as LlamaForSequenceClassification).loss({
    inputs: Int32Array.of(4, 5, 6),
    labels: Float32Array.of(1),
    attentionMask: Int32Array.from(mask),
    shape: [1, 3],
  });
}

async function onCpu(fn: () => Promise<void>): Promise<void> {
  const device = await init({ device: "cpu" });
  try {
    await fn();
  } finally {
    await device.close();
  }
}

Deno.test("rlhf: bad input to losses is named", async (t) => {
  await onCpu(async () => {
    const given = models();
    for (const [name, call, message] of CASES) {
      await t.step(name, () => {
        const error = assertThrows(() => call(given), Error);
        if (!message.test(error.message)) throw new Error(`${message} is not in: ${error.message}`);
      });
    }
  });
});

Deno.test("rlhf: a reward that gives too few scores, or NaN, stops best-of-n", async () => {
  await onCpu(async () => {
    const { plain } = models();
    for (const [scores, message] of [[[1], /each of 4 answers, got 1/], [[1, 2, NaN, 3], /NaN/]]) {
      const reward = (): Promise<number[]> => Promise.resolve(scores as number[]);
      const error = await assertRejects(
        () => bestOfN(plain, [[1, 5]], reward, { maxTokens: 2 }),
        RangeError,
      );
      if (!(message as RegExp).test(error.message)) throw error;
    }
    await assertRejects(
      () => sampleAnswers(plain, [LONG], { maxTokens: 2 }),
      RangeError,
      "prompt 0 needs 1 to 10 tokens, got 11",
    );
    for (const [prompt, token] of [[LONG, 4], [[1], 20]] as const) {
      await assertRejects(
        () =>
          measureAnswers(plain, [{ prompt: [1], tokens: [2], ended: true }, {
            prompt: [...prompt],
            tokens: [token],
            ended: false,
          }]),
        RangeError,
        `measureAnswers: answer 1 ${token === 4 ? "is of 12 tokens" : "needs tokens in [0, 20)"}`,
      );
    }
  });
});

Deno.test("rlhf: answers without an end, and padding that is the end token, count as they are", async () => {
  await onCpu(async () => {
    const { adapted, plain, reward } = models();
    // An answer that was cut off is learnt up to where it stops; of one with an end, the end too.
    const value = async (rows: readonly GRPORow[]): Promise<number> =>
      await noGrad(() => grpoLoss(plain, rows, { room: { total: 10, answer: 6 } })).entropy.item();
    const cut: GRPORow = { ...ROW, tokens: [6, 7], ended: false };
    const [open, ended] = [await value([cut]), await value([ROW])];
    const both = await value([cut, ROW]);
    assertAlmostEquals(both, (2 * open + 3 * ended) / 5, 1e-5, "each token weighs the same");

    // The longest row fills the context; the others are padded within it, with what is no token of theirs.
    const full: PreferencePair = { ...PAIR, rejected: [7, 8, 9, 10, 11, 12, 13, END] };
    const { loss } = dpoLoss(adapted, [PAIR, full]);
    assertAlmostEquals(await loss.item(), Math.LN2, 1e-6);
    // The same for what is measured, by a value model of its own too.
    const answers: Answer[] = [PAIR, full].map(({ prompt, rejected }) => ({
      prompt,
      tokens: rejected,
      ended: true,
    }));
    const judge = new ValueModel(8, { backbone: plain });
    judge.head.weight.assign(tensor(new Float32Array(8).fill(0.5)).reshape(1, 8));
    const measured = await measureAnswers(adapted, answers, { value: judge });
    const exact = await measureAnswers(adapted, answers, {
      value: judge,
      room: { total: 10, answer: 8 },
    });
    assertEquals(measured.map(({ values }) => values), exact.map(({ values }) => values));
    assertEquals(measured.map(({ logprobs }) => logprobs), exact.map(({ logprobs }) => logprobs));

    // Rows that end with the end token, several times over: the last of them is what is scored.
    const scores = await noGrad(() => reward.scores([[5, END], [5, END, END]])).data();
    const alone = await noGrad(() => reward.scores([[5, END, END]])).data();
    assertAlmostEquals(scores[1], alone[0], 1e-6);
    if (Math.abs(scores[0] - scores[1]) < 1e-4) throw new Error("the second end is not seen");
    const answer: Answer = { prompt: [5], tokens: [6, 7], ended: false };
    assertEquals((await reward.reward([answer])).length, 1);
  });
});

const RANKINGS: readonly [name: string, lines: string, message: RegExp][] = [
  ["an unknown id", '{"id": "c", "ranks": [0, 1]}', /line 1: there is no prompt "c" among those/],
  [
    "an id that stands twice",
    '{"id": "a", "ranks": [0, 1]}\n\n{"id": "a", "ranks": [1, 0]}',
    /line 3: prompt "a" stands twice/,
  ],
  [
    "a missing answer",
    '{"id": "b", "ranks": [0, 1]}',
    /line 1: prompt "b" has 3 answers, and 2 ranks/,
  ],
  ["a rank that is none", '{"id": "a", "ranks": [0, null]}', /rank of answer 1 .*number, is null/],
  ["no ranking", '["a", 0]', /line 1: needs id, the prompt's, and ranks/],
  ["no JSON", '{"id": "a", "ranks": [0, 1]}\n{"id":', /line 2 is not JSON/],
  ["nothing", "\n", /ranks no prompt/],
  ["ties alone", '{"id": "a", "ranks": [1, 1]}', /all answers to each prompt tie/],
];

Deno.test("rankings: what a person wrote, and each fault with its line", async (t) => {
  const path = `${await Deno.makeTempDir()}/rankings.jsonl`;
  const asked = [{ id: "a", answers: ["x", "y"] }, { id: "b", answers: ["x", "y", "z"] }];
  await Deno.writeTextFile(path, '{"id": "b", "ranks": [0, 2, 0]}\n{"id": "a", "ranks": [4, 4]}\n');
  assertEquals(await readRankings(path, asked), new Map([["b", [0, 2, 0]], ["a", [4, 4]]]));
  for (const [name, lines, message] of RANKINGS) {
    await t.step(name, async () => {
      await Deno.writeTextFile(path, lines);
      const error = await assertRejects(() => readRankings(path, asked), Error, path);
      if (!message.test(error.message)) throw new Error(`${message} is not in: ${error.message}`);
    });
  }
  await Deno.remove(path);
  await assertRejects(() => readRankings(path, asked), Error, path);
});

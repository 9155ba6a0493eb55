/** What the losses are for: a policy that a rule likes better, and that knows what it knew. */

import { assert, assertEquals } from "@std/assert";
import { Generator, init, manualSeed, noGrad, threefryWord } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW, clipGradNorm } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import {
  accumulatePtx,
  AdaptiveKL,
  type Answer,
  bestOfN,
  dpoLoss,
  groupAdvantages,
  grpoLoss,
  klOf,
  makeExperience,
  measureAnswers,
  minibatches,
  ppoBatch,
  ppoLoss,
  sampleAnswers,
  ValueModel,
} from "@graft/ml/rlhf";

const VOCABULARY = 24, LENGTH = 8, TARGET = 6;
const ROOM = { total: 16, answer: LENGTH };
const SAMPLING = { maxTokens: LENGTH, stopTokens: [], temperature: 0.7 } as const;

/** Rows of general text: each token decides the next, but for one in five. */
function general(random: Generator, rows = 8) {
  const width = 16, ids = new Int32Array(rows * (width + 1));
  const draws = word(random);
  for (let i = 0; i < ids.length; i++) {
    const free = i % (width + 1) === 0 || draws(i) % 5 === 0;
    ids[i] = 3 + (free ? draws(i) >>> 8 : (ids[i - 1] - 3) * 8 + 5) % (VOCABULARY - 3);
  }
  const at = (shift: number) => ids.filter((_, i) => i % (width + 1) !== (shift === 0 ? width : 0));
  return { inputs: at(0), targets: at(1), shape: [rows, width] as const };
}

/** Whole numbers that a generator decides. */
function word(random: Generator): (i: number) => number {
  const { key0, key1, counter } = random.next();
  return (i) => threefryWord(key0, key1, i, counter) >>> 0;
}

function prompts(count: number, random: Generator): number[][] {
  const draws = word(random);
  return Array.from({ length: count }, (_, i) => [1, 3 + draws(i) % (VOCABULARY - 3)]);
}

/** The rule: how many of an answer's tokens are among the first third. */
const rule = (answers: readonly Answer[]): number[] =>
  answers.map(({ tokens }) => tokens.filter((id) => id < 10).length);

const reward = (answers: readonly Answer[]): Promise<number[]> => Promise.resolve(rule(answers));

const HELD_OUT = prompts(64, new Generator(90));

const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b) / values.length;

/** Writes a model that has learnt the general text. */
async function pretrain(folder: string): Promise<void> {
  manualSeed(1);
  const model = new LlamaForCausalLM({
    vocab_size: VOCABULARY,
    hidden_size: 32,
    intermediate_size: 64,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    max_position_embeddings: 32,
  });
  const optimizer = new AdamW(model.trainable(), { lr: 1e-2, weightDecay: 0 });
  const random = new Generator(2);
  for (let step = 0; step < 150; step++) {
    model.loss(general(random)).backward();
    await optimizer.step();
    optimizer.zeroGrad();
  }
  await model.savePretrained(folder);
}

/** That model with a fresh adapter. */
async function adapted(folder: string): Promise<LlamaForCausalLM> {
  const model = await LlamaForCausalLM.fromPretrained(folder);
  manualSeed(3);
  return inject(model, { r: 8, lora_alpha: 16, target_modules: "all-linear" });
}

interface Figures {
  readonly score: number;
  readonly deviation: number;
  readonly kl: number;
  readonly loss: number;
}

async function measure(model: LlamaForCausalLM): Promise<Figures> {
  const answers = await sampleAnswers(model, HELD_OUT, { ...SAMPLING, generator: 91 });
  const rows = await measureAnswers(model, answers, { room: ROOM });
  const scores = rule(answers), score = mean(scores);
  const loss = await noGrad(() => model.loss(general(new Generator(92), 32))).item();
  const deviation = Math.sqrt(mean(scores.map((x) => (x - score) ** 2)));
  return { score, deviation, kl: mean(rows.map(klOf)), loss };
}

async function step(optimizer: AdamW): Promise<void> {
  clipGradNorm(optimizer.parameters, 1);
  await optimizer.step();
  optimizer.zeroGrad();
}

async function ppo(model: LlamaForCausalLM, ptx: number): Promise<Figures> {
  const value = new ValueModel(32);
  const optimizer = new AdamW([...model.trainable(), ...value.trainable()], {
    lr: 5e-3,
    weightDecay: 0,
  });
  const kl = new AdaptiveKL({ coefficient: 0.45, target: TARGET, horizon: 160 });
  const random = new Generator(3), order = new Generator(4), text = new Generator(5);
  for (let round = 0; round < 9; round++) {
    const answers = await sampleAnswers(model, prompts(64, random), {
      ...SAMPLING,
      generator: random,
    });
    const rollouts = await measureAnswers(model, answers, { value, room: ROOM });
    const { rows, metrics } = makeExperience(rollouts, rule(answers), { beta: kl.coefficient });
    for (const batch of minibatches(rows, 32, 2, order)) {
      ppoLoss(model, value, ppoBatch(batch, ROOM)).loss.backward();
      if (ptx > 0) accumulatePtx(model, [general(text), general(text)], ptx);
      await step(optimizer);
    }
    kl.update(metrics["objective/kl"], answers.length);
  }
  return await measure(model);
}

async function grpo(model: LlamaForCausalLM): Promise<Figures> {
  const optimizer = new AdamW(model.trainable(), { lr: 5e-3, weightDecay: 0 });
  const random = new Generator(3);
  for (let round = 0; round < 14; round++) {
    const asked = prompts(16, random).flatMap((prompt) => Array<number[]>(4).fill(prompt));
    const answers = await sampleAnswers(model, asked, { ...SAMPLING, generator: random });
    const advantages = groupAdvantages(rule(answers), 4);
    const rows = (await measureAnswers(model, answers, { room: ROOM }))
      .map((row, i) => ({ ...row, advantage: advantages[i] }));
    for (let epoch = 0; epoch < 2; epoch++) {
      grpoLoss(model, rows, { beta: 0.1, room: ROOM }).loss.backward();
      await step(optimizer);
    }
  }
  return await measure(model);
}

/** Pairs are the best and the worst of four answers, where the rule tells them apart. */
async function dpo(model: LlamaForCausalLM): Promise<Figures> {
  const optimizer = new AdamW(model.trainable(), { lr: 5e-3, weightDecay: 0 });
  const asked = prompts(192, new Generator(6));
  const pairs = (await bestOfN(model, asked, reward, { ...SAMPLING, n: 4, generator: 7 }))
    .filter(({ scores }) => Math.max(...scores) > Math.min(...scores))
    .map(({ answer, answers, scores }) => ({
      prompt: answer.prompt,
      chosen: answer.tokens,
      rejected: answers[scores.indexOf(Math.min(...scores))].tokens,
    }));
  for (let epoch = 0; epoch < 2; epoch++) {
    for (let at = 0; at + 16 <= pairs.length; at += 16) {
      dpoLoss(model, pairs.slice(at, at + 16), { room: ROOM }).loss.backward();
      await step(optimizer);
    }
  }
  return await measure(model);
}

Deno.test("rlhf: PPO and GRPO raise the rule's score by its deviation; PPO-ptx forgets little", async (t) => {
  const device = await init({ device: "cpu" });
  const folder = await Deno.makeTempDir();
  await pretrain(folder);
  const start = await adapted(folder);
  const base = await measure(start);
  assertEquals(base.kl, 0);
  const hasRisen = ({ score }: Figures): void =>
    assert(score >= base.score + base.deviation, `${base.score} ± ${base.deviation}, ${score}`);
  let plain = base;
  await t.step("PPO", async () => {
    plain = await ppo(await adapted(folder), 0);
    hasRisen(plain);
    assert(plain.kl < TARGET, `KL ${plain.kl}`);
  });
  await t.step("PPO-ptx", async () => {
    const ptx = await ppo(await adapted(folder), 0.5);
    hasRisen(ptx);
    assert(ptx.kl < TARGET, `KL ${ptx.kl}`);
    const [without, rise] = [plain.loss - base.loss, ptx.loss - base.loss];
    assert(without > 0.03 && rise <= without / 3, `rise ${rise}, without ptx ${without}`);
  });
  await t.step("GRPO", async () => hasRisen(await grpo(await adapted(folder))));
  await t.step("DPO on the best and worst of four beats the best of four", async () => {
    const best = await bestOfN(start, HELD_OUT, reward, { ...SAMPLING, n: 4, generator: 91 });
    const baseline = mean(best.map(({ score }) => score));
    const { score } = await dpo(await adapted(folder));
    assert(score > baseline && baseline > base.score, `${base.score}, ${baseline}, ${score}`);
  });
  await device.close();
  await Deno.remove(folder, { recursive: true });
});

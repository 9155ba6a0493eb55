/** PPO against TRL and PyTorch: see rlhf_ppo.py. */

import { assertEquals } from "@std/assert";
import { noGrad } from "@graft/ml";
import { Linear, LlamaForCausalLM, Parameter } from "@graft/ml/nn";
import { adapterState, loadAdapter } from "@graft/ml/peft";
import {
  accumulatePtx,
  type Answer,
  generalizedAdvantages,
  makeExperience,
  measureAnswers,
  policyPass,
  ppoBatch,
  type PPOLoss,
  ppoLoss,
  tokenRewards,
  ValueModel,
  whiten,
} from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";
import { type Golden, golden, here, near, shifted } from "./golden.ts";

const SETTINGS = { beta: 0.05, gamma: 0.98, lambda: 0.9, missingEndPenalty: 1.5 };
const LENGTH = 8;

/** Rows of answers' tokens as TRL has them, padded with 0 on the right. */
function padded(rows: readonly Float32Array[]): number[] {
  return rows.flatMap((row) => [...row, ...new Float32Array(LENGTH - row.length)]);
}

/** The golden answers without their padding. */
async function answers(file: Golden): Promise<Answer[]> {
  const rows = async (key: string): Promise<number[][]> => {
    const t = await file.tensor(key);
    const all = Array.from(await t.data() as Int32Array);
    const [, width] = t.shape;
    return [0, 1, 2].map((b) => all.slice(b * width, (b + 1) * width).filter((id) => id !== 0));
  };
  const responses = await rows("responses");
  return (await rows("queries")).map((prompt, b) => ({
    prompt,
    tokens: responses[b],
    ended: responses[b].at(-1) === 2,
  }));
}

/** Of rows [3, 8], the places where there is a token. */
async function ragged(
  file: Golden,
  key: string,
  rows: readonly Answer[],
): Promise<Float32Array<ArrayBuffer>[]> {
  const all = await file.floats(key);
  return rows.map(({ tokens }, b) => all.slice(b * LENGTH, b * LENGTH + tokens.length));
}

async function policy(): Promise<LlamaForCausalLM> {
  const model = await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`);
  await loadAdapter(model, `${here}peft_lora`, { trainable: true });
  return model;
}

async function head(file: Golden, key: string): Promise<Linear> {
  const weight = new Parameter(await file.tensor(key));
  return new Linear(32, 1, { weight, bias: false });
}

forEachDevice("parity: PPO's rollout, rewards, advantages, losses, gradients", async () => {
  await using file = await golden("rlhf_ppo.safetensors");
  const model = await policy();
  const rows = await answers(file);
  const value = new ValueModel(32, { head: await head(file, "score_shared") });

  const rollouts = await measureAnswers(model, rows, { value });
  for (
    const [key, golden] of [
      ["logprobs", "logprobs"],
      ["refLogprobs", "ref_logprobs"],
      ["entropy", "entropy"],
      ["values", "values"],
    ] as const
  ) {
    near(key, padded(rollouts.map((row) => row[key])), await file.floats(golden), 1e-5);
  }

  const scores = await file.floats("scores");
  const { rows: experience } = makeExperience(rollouts, scores, SETTINGS);
  for (const key of ["advantages", "returns"] as const) {
    near(key, padded(experience.map((row) => row[key])), await file.floats(key), 1e-5);
  }

  // The losses are clipped against other old numbers, so that some tokens are clipped.
  const old = { logprobs: "old_logprobs", values: "old_values" };
  const before = await ragged(file, old.logprobs, rows);
  const beforeValues = await ragged(file, old.values, rows);
  const batch = ppoBatch(
    experience.map((row, b) => ({ ...row, logprobs: before[b], values: beforeValues[b] })),
    { total: 14, answer: LENGTH },
  );
  const result = ppoLoss(model, value, batch);
  result.loss.backward();
  const names: Partial<Record<keyof PPOLoss, string>> = {
    policy: "policy_loss",
    value: "value_loss",
    approxKL: "approxkl",
    clipFraction: "clipfrac",
    valueClipFraction: "value_clipfrac",
    entropy: "entropy_mean",
    ratio: "ratio",
  };
  for (const [key, name] of Object.entries(names)) {
    const got = await result[key as keyof PPOLoss].data();
    near(name, got as Float32Array, await file.floats(name), 1e-5);
  }
  await gradients(model, file, "grad");
  near("grad.score", await value.head.weight.grad!.data(), await file.floats("grad.score"), 1e-5);

  // Two backward passes, one step: the gradients add up.
  await using language = await golden("tiny_llama/golden.safetensors");
  const nll = accumulatePtx(model, [{
    inputs: await language.tensor("input_ids"),
    targets: shifted(await language.tensor("labels")),
  }]);
  near("ptx_loss", await nll.data() as Float32Array, await file.floats("ptx_loss"), 1e-5);
  await gradients(model, file, "ptx");
});

/** Every trained parameter's gradient, held against `<prefix>.<key>`. */
async function gradients(model: LlamaForCausalLM, file: Golden, prefix: string): Promise<void> {
  const state = adapterState(model);
  const keys = file.keys.filter((key) => key.startsWith(`${prefix}.base_model`));
  assertEquals(keys.length, state.size);
  for (const key of keys) {
    const { grad } = state.get(key.slice(prefix.length + 1))!;
    near(key, await grad!.data() as Float32Array, await file.floats(key), 1e-5);
  }
}

forEachDevice("parity: a value model of its own, its loss and gradients", async () => {
  await using file = await golden("rlhf_ppo.safetensors");
  const model = await policy();
  const rows = await answers(file);
  const backbone = (await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`)).freeze();
  backbone.unfreeze(/^model\.norm\./);
  const value = new ValueModel(32, { backbone, head: await head(file, "score_own") });
  const oldValues = await ragged(file, "old_values", rows);
  const returns = await ragged(file, "returns", rows);
  const zero = rows.map(({ tokens }) => new Float32Array(tokens.length));
  const batch = ppoBatch(
    rows.map((row, b) => ({
      ...row,
      logprobs: zero[b],
      refLogprobs: zero[b],
      entropy: zero[b],
      advantages: zero[b], // so that the policy's loss has no gradient
      values: oldValues[b],
      returns: returns[b],
      score: 0,
    })),
    { total: 14, answer: LENGTH },
  );
  const { values } = noGrad(() => policyPass(model, batch.answers, { value }));
  const mask = await batch.answers.mask.to("f32").data();
  const seen = (await values!.data()).map((v, i) => mask[i] * (v as number));
  near("own.values", seen as Float32Array, await file.floats("own.values"), 1e-5);
  const result = ppoLoss(model, value, batch, { valueCoefficient: 1 });
  result.loss.backward();
  const loss = await result.value.data() as Float32Array;
  near("own.value_loss", loss, await file.floats("own.value_loss"), 1e-5);
  const { weight } = value.head, { norm } = backbone.model;
  near("own.grad.score", await weight.grad!.data(), await file.floats("own.grad.score"), 1e-5);
  near("own.grad.norm", await norm.weight.grad!.data(), await file.floats("own.grad.norm"), 1e-5);
});

Deno.test("parity: rewards and advantages by themselves", async () => {
  await using file = await golden("rlhf_ppo.safetensors");
  const rows = [LENGTH, 5, 1];
  const cut = async (key: string): Promise<Float32Array<ArrayBuffer>[]> => {
    const all = await file.floats(key);
    return rows.map((n, b) => all.slice(b * LENGTH, b * LENGTH + n));
  };
  const [logprobs, refLogprobs, values] = [
    await cut("logprobs"),
    await cut("ref_logprobs"),
    await cut("values"),
  ];
  const scores = await file.floats("scores");
  const final = [scores[0] - SETTINGS.missingEndPenalty, scores[1], scores[2]];
  const rewards = rows.map((_, b) => tokenRewards(final[b], logprobs[b], refLogprobs[b], 0.05));
  near("rewards", padded(rewards), await file.floats("rewards"), 1e-6);
  const white = await file.floats("rewards_whitened");
  near("rewards_whitened", padded(whiten(rewards, true)), white, 1e-5);
  const raw = rows.map((_, b) => generalizedAdvantages(rewards[b], values[b], SETTINGS).advantages);
  near("advantages_raw", padded(raw), await file.floats("advantages_raw"), 1e-6);
});

/** Losses, metrics and gradients of SFT, reward models, DPO and GRPO against TRL: see rlhf.py. */

import { assert, assertEquals } from "@std/assert";
import { tensor } from "@graft/ml";
import { DataLoader, pack } from "@graft/ml/data";
import { type CausalLM, loadModel, type Module } from "@graft/ml/nn";
import { adapterState, loadAdapter } from "@graft/ml/peft";
import {
  dpoLoss,
  groupAdvantages,
  grpoLoss,
  type PreferencePair,
  rankingLoss,
  RewardModel,
  sftLoss,
} from "@graft/ml/rlhf";
import { forEachDevice } from "../devices.ts";
import { type Golden, golden, here, near } from "./golden.ts";

type Family = "llama" | "gpt2";

const BASES = { llama: "tiny_llama", gpt2: "families/gpt2" };
const ADAPTERS = { llama: "peft_lora", gpt2: "peft_more/conv1d" };

/** Rows of tokens, without what fills them up. */
async function rowsOf(file: Golden, key: string): Promise<number[][]> {
  const ids = await file.ints(key);
  const all = [...await ids.data()], [count, width] = ids.shape;
  return Array.from(
    { length: count },
    (_, b) => all.slice(b * width, (b + 1) * width).filter((id) => id >= 0),
  );
}

/** The scalars of a loss by their names. */
async function checkScalars(
  file: Golden,
  got: Readonly<Record<string, { data(): Promise<ArrayLike<number>> }>>,
  rename: Readonly<Record<string, string>> = {},
): Promise<void> {
  for (const [name, value] of Object.entries(got)) {
    const key = rename[name] ?? name;
    near(key, await value.data(), await file.floats(key), 1e-5);
  }
}

/** Gradients of the parameters, under the golden's names after `prefix`; they are cleared. */
async function checkGradients(
  file: Golden,
  parameters: ReadonlyMap<string, { grad: { data(): Promise<ArrayLike<number>> } | null }>,
  prefix = "grad.",
): Promise<void> {
  for (const [name, parameter] of parameters) {
    near(name, await parameter.grad!.data(), await file.floats(prefix + name), 1e-5);
    parameter.grad = null;
  }
  const keys = file.keys.filter((key) => key.startsWith(prefix)).map((k) => k.slice(prefix.length));
  assertEquals([...parameters.keys()].sort(), keys.sort());
}

function all(model: Module): ReturnType<typeof adapterState> {
  return new Map(model.namedParameters());
}

async function adapted(
  name: keyof typeof BASES,
): Promise<{ model: CausalLM; parameters: ReturnType<typeof adapterState> }> {
  const model = await loadModel(`${here}${BASES[name]}`) as CausalLM;
  await loadAdapter(model, `${here}${ADAPTERS[name]}`, { trainable: true });
  const prefix = "base_model.model.";
  const state = [...adapterState(model, "default")]
    .map(([key, parameter]) => [key.slice(prefix.length), parameter] as const);
  return { model, parameters: new Map(state) };
}

async function checkSFT(isWhole: boolean): Promise<void> {
  const model = await loadModel(`${here}tiny_llama`) as CausalLM;
  model.unfreeze();
  await using file = await golden("rlhf/sft.safetensors");
  const rows = await rowsOf(file, "rows");
  const prompts = await (await file.ints("prompts")).data();
  const documents = rows.map((ids, i) => ({ ids: Int32Array.from(ids), promptLength: prompts[i] }));

  // One row a document, padded on the right; then the halves as two batches of one step.
  const longest = Math.max(...rows.map((row) => row.length)) - 1;
  const dataset = pack(documents, longest, 0, { separate: true });
  const [batch] = new DataLoader(dataset, { batchSize: dataset.length, shuffle: false, epochs: 1 });
  const loss = sftLoss(model, batch);
  loss.backward();
  await checkScalars(file, { loss });
  await checkGradients(file, all(model));

  if (!isWhole) return;
  const target = batch.targetCount;
  for (const i of [0, 1]) {
    const half = pack(documents.slice(2 * i, 2 * i + 2), longest, 0, { separate: true });
    const [part] = new DataLoader(half, { batchSize: half.length, shuffle: false, epochs: 1 });
    const loss = sftLoss(model, part, { count: target });
    loss.backward();
    await checkScalars(file, { [`half.${i}`]: loss });
  }
  await checkGradients(file, all(model));

  // All padding on the left, as a batch of one's own.
  const ids = rows.flatMap((row) => [...Array(longest + 1 - row.length).fill(2), ...row]);
  const at = (b: number, t: number): number => t - (longest + 1 - rows[b].length);
  const each = <T>(fn: (b: number, t: number) => T): T[] =>
    rows.flatMap((_, b) => Array.from({ length: longest }, (_, t) => fn(b, t)));
  const left = sftLoss(model, {
    inputs: Int32Array.from(each((b, t) => ids[b * (longest + 1) + t])),
    targets: Int32Array.from(
      each((b, t) => at(b, t) + 1 >= prompts[b] ? ids[b * (longest + 1) + t + 1] : -100),
    ),
    documents: Int32Array.from(each((b, t) => at(b, t) < 0 ? 1 : 0)),
    shape: [rows.length, longest],
  });
  left.backward();
  await checkScalars(file, { loss: left });
  await checkGradients(file, all(model));
}

async function checkReward(name: Family): Promise<void> {
  const folder = `rlhf/reward_${name}`;
  const reward = await RewardModel.fromPretrained(`${here}${folder}`);
  const { model } = reward;
  model.unfreeze();
  await using file = await golden(`${folder}/golden.safetensors`);
  const prompts = await rowsOf(file, "prompts");
  const chosen = await rowsOf(file, "chosen"), rejected = await rowsOf(file, "rejected");
  const margins = await file.floats("margins");

  const pairs = rankingLoss(
    reward,
    prompts.map((prompt, i) => ({
      prompt,
      answers: [chosen[i], rejected[i]],
      margin: margins[i],
    })),
  );
  pairs.loss.backward();
  await checkScalars(file, { ...pairs });
  await checkGradients(file, all(model));

  // Rows without a prompt of their own: ranked answers of different prompts, as in rlhf.py.
  const ranked = rankingLoss(
    reward,
    [0, 2].map((first) => ({
      prompt: [],
      answers: [first, first + 1].map((i) => [...prompts[i], ...chosen[i]]).concat(
        [first, first + 1].map((i) => [...prompts[i], ...rejected[i]]),
      ),
    })),
  );
  ranked.loss.backward();
  await checkScalars(file, { "ranked.loss": ranked.loss });
  await checkGradients(file, all(model), "ranked.grad.");

  // Padding on the left, with the end token.
  const rows = [...chosen, ...rejected].map((answer, i) => [...prompts[i % 4], ...answer]);
  const width = Math.max(...rows.map((row) => row.length)) + 2;
  const ids = rows.flatMap((row) => [...Array(width - row.length).fill(2), ...row]);
  const attentionMask = Int32Array.from(
    rows.flatMap((row) => [...Array(width - row.length).fill(0), ...row.map(() => 1)]),
  );
  const tokens = tensor(Int32Array.from(ids), { shape: [rows.length, width] });
  assert("score" in model);
  const scores = model.forward(tokens, { attentionMask });
  near("scores", await scores.data(), await file.floats("scores"), 1e-5);
}

async function checkDPO(name: Family): Promise<void> {
  const { model, parameters } = await adapted(name);
  await using file = await golden(`rlhf/dpo_${name}.safetensors`);
  const prompts = await rowsOf(file, "prompts");
  const chosen = await rowsOf(file, "chosen"), rejected = await rowsOf(file, "rejected");
  const pairs: PreferencePair[] = prompts.map((prompt, i) => ({
    prompt,
    chosen: chosen[i],
    rejected: rejected[i],
  }));
  const base = await loadModel(`${here}${BASES[name]}`) as CausalLM;
  for (const kind of ["sigmoid", "ipo"] as const) {
    // The reference is the same with the adapter off, or another model.
    for (const reference of [undefined, base]) {
      const result = dpoLoss(model, pairs, { kind, reference });
      result.loss.backward();
      await checkScalars(file, { ...result }, { loss: `${kind}.loss` });
      await checkGradients(file, parameters, `${kind}.grad.`);
    }
  }
}

async function checkGRPO(): Promise<void> {
  const { model, parameters } = await adapted("llama");
  await using file = await golden("rlhf/grpo.safetensors");
  const prompts = await rowsOf(file, "prompts"), completions = await rowsOf(file, "completions");
  const advantages = groupAdvantages(await file.floats("scores"), 4);
  near("advantages", advantages, await file.floats("advantages"), 1e-6);
  const longest = Math.max(...completions.map((row) => row.length));
  const rowsAt = async (key: string): Promise<Float32Array<ArrayBuffer>[]> => {
    const values = await file.floats(key);
    return completions.map((row, b) => values.slice(b * longest, b * longest + row.length));
  };
  const logprobs = await rowsAt("old_logprobs"), refLogprobs = await rowsAt("ref_logprobs");
  for (const name of ["plain", "kl", "fresh"]) {
    const rows = completions.map((tokens, b) => ({
      prompt: prompts[b],
      tokens,
      ended: tokens.at(-1) === 2,
      advantage: advantages[b],
      ...name !== "fresh" && { logprobs: logprobs[b] },
      ...name === "kl" && { refLogprobs: refLogprobs[b] },
    }));
    const result = grpoLoss(model, rows, { beta: name === "kl" ? 0.04 : 0, temperature: 0.7 });
    result.loss.backward();
    await checkScalars(file, {
      [`${name}.loss`]: result.loss,
      [`${name}.clip`]: result.clipFraction,
      ...name === "kl" && { kl: result.kl },
    });
    await checkGradients(file, parameters, `${name}.grad.`);
  }
}

// One test a device, so that the steps share what is compiled.
forEachDevice("parity: losses of SFT, reward models, DPO and GRPO are TRL's", async (device, t) => {
  // A software GPU takes seconds to compile each kernel, and the losses have none but these.
  const isWhole = device.name === "cpu";
  const families: readonly Family[] = isWhole ? ["llama", "gpt2"] : ["llama"];
  await t.step("SFT", () => checkSFT(isWhole));
  for (const name of families) {
    await t.step(`reward model, ${name}`, () => checkReward(name));
    await t.step(`DPO, ${name}`, () => checkDPO(name));
  }
  await t.step("GRPO", checkGRPO);
});

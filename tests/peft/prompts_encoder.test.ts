/** Soft prompts of encoders: what they compute, what is trained, how they start, what cannot be. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { init, manualSeed, noGrad, tensor, useDevice } from "@graft/ml";
import {
  BertForMaskedLM,
  BertForSequenceClassification,
  BertForTokenClassification,
  BertModel,
  type EncoderConfig,
  RobertaForSequenceClassification,
  RobertaModel,
} from "@graft/ml/nn";
import {
  addAdapter,
  injectPrompt,
  keysAndValues,
  loadAdapter,
  type PromptConfig,
  saveAdapter,
  setActive,
  unload,
  withoutAdapters,
  withRowAdapters,
} from "@graft/ml/peft";

const sizes: EncoderConfig = {
  vocab_size: 23,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  max_position_embeddings: 20,
  hidden_dropout_prob: 0,
  attention_probs_dropout_prob: 0,
  initializer_range: 0.3,
  num_labels: 3,
};
const text = [3, 14, 7, 5];
const tokens = [2, 6, 5, 3];
const prompt: PromptConfig = { peft_type: "PROMPT_TUNING", num_virtual_tokens: 4 };
const prefix: PromptConfig = { peft_type: "PREFIX_TUNING", num_virtual_tokens: 4 };
const written: PromptConfig = {
  ...prompt,
  prompt_tuning_init: "TEXT",
  prompt_tuning_init_text: "a text",
  tokenizer_name_or_path: "tiny",
};

async function onCpu(fn: () => Promise<void>): Promise<void> {
  const device = await init({ device: "cpu" });
  manualSeed(1);
  await fn();
  await device.close();
  useDevice(null);
}

function apart(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assertEquals(a.length, b.length);
  return Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
}

async function states(model: BertModel | RobertaModel, ids: number[]): Promise<Float32Array> {
  return await noGrad(() => model.forward(tensor([ids], { dtype: "i32" }))).data() as Float32Array;
}

Deno.test("prompts of encoders: one that is a text is as good as the text", () =>
  onCpu(async () => {
    for (const Model of [BertModel, RobertaModel]) {
      // In one layer keys and values are the tokens' own; deeper ones have seen what follows, too.
      for (const [layers, config] of [[2, written], [1, prefix]] as const) {
        const model = new Model({ ...sizes, num_hidden_layers: layers });
        const read = (await states(model, [...text, ...tokens])).slice(-tokens.length * 16);
        const alone = await states(model, tokens);
        assert(apart(read, alone) > 1e-2);
        await injectPrompt(model, config, { tokens: text });
        const name = `${model.constructor.name}, ${config.peft_type}`;
        assert(apart(await states(model, tokens), read) < 1e-4, name);
        // Padding behind the tokens changes nothing for them.
        const pad = model.config.pad_token_id;
        const ids = tensor([[...tokens, pad, pad]], { dtype: "i32" });
        const attentionMask = tensor([[1, 1, 1, 1, 0, 0]], { dtype: "i32" });
        const padded = model.forward(ids, { attentionMask }).slice(1, 0, 4);
        assert(apart(await padded.data(), read) < 1e-4, `${name}: padded`);
        assertEquals(apart(await withoutAdapters(model, () => states(model, tokens)), alone), 0);
      }
    }
  }));

Deno.test("prompts of encoders: starts", () =>
  onCpu(async () => {
    const model = new RobertaForSequenceClassification(sizes);
    const rows = async (start?: "random" | "zero"): Promise<ArrayLike<number>> => {
      await injectPrompt(model, prefix, start ? { start } : { tokens: text });
      const values = await model.trainable()[0].data();
      unload(model);
      return values;
    };
    assertEquals(apart(await rows(), await (await keysAndValues(model, text)).data()), 0);
    assertEquals(apart(await rows("zero"), new Float32Array(4 * 2 * 2 * 16)), 0);
    assert(Array.from(await rows("random")).some((x) => Math.abs(x) > 1));
  }));

Deno.test("prompts of encoders: with a task its head is trained too, and nothing else", () =>
  onCpu(async () => {
    const folder = await Deno.makeTempDir();
    const ids = tensor([tokens], { dtype: "i32" });
    const cases = [
      [new BertForSequenceClassification(sizes), "SEQ_CLS", tensor([2], { dtype: "i32" }), 2],
      [new RobertaForSequenceClassification(sizes), "SEQ_CLS", tensor([1], { dtype: "i32" }), 4],
      [new BertForTokenClassification(sizes), "TOKEN_CLS", tensor([[0, 2, 1, 0]]).to("i32"), 2],
      [new BertForMaskedLM(sizes), null, ids, 0],
    ] as const;
    for (const [model, task_type, labels, copied] of cases) {
      const name = model.constructor.name;
      model.eval();
      const logits = async (): Promise<ArrayLike<number>> =>
        await noGrad(() => model.forward(ids)).data();
      const base = await logits();
      await injectPrompt(model, { ...prefix, task_type }, { tokens: text });
      assertEquals(model.trainable().length, 1 + copied, name);
      const gradients: ArrayLike<number>[][] = [];
      model.train();
      for (const again of [false, true]) {
        for (const m of model.modules()) {
          if ("gradientCheckpointing" in m) m.gradientCheckpointing = again;
        }
        model.loss({ inputs: ids, labels }).backward();
        gradients.push(await Promise.all(model.trainable().map((p) => p.grad!.data())));
        assert(model.parameters().every((p) => p.requiresGrad || p.grad === null), name);
        for (const p of model.trainable()) p.grad = null;
      }
      gradients[0].forEach((g, i) => assert(apart(g, gradients[1][i]) < 1e-5, name));
      model.eval();
      for (const p of model.trainable()) p.assign(p.add(0.3));
      const adapted = await logits();
      assert(apart(adapted, base) > 1e-3, name);
      await saveAdapter(model, folder);
      assertEquals(apart(await withoutAdapters(model, logits), base), 0, name);
      unload(model);
      assertEquals(apart(await logits(), base), 0, name);
      await loadAdapter(model, folder, { trainable: true });
      assert(apart(await logits(), adapted) < 1e-6, name);
      assertEquals(model.trainable().length, 1 + copied, name);
    }
    // A file without the head it names.
    const model = new BertForMaskedLM(sizes);
    const path = `${folder}/adapter_config.json`;
    const config = JSON.parse(await Deno.readTextFile(path));
    config.modules_to_save = ["transform"];
    await Deno.writeTextFile(path, JSON.stringify(config));
    await assertRejects(
      () => loadAdapter(model, folder),
      Error,
      "base_model.cls.predictions.transform.dense.weight",
    );
    assert(model.prompt === null && model.trainable().length === model.parameters().length);
    await Deno.remove(folder, { recursive: true });
  }));

Deno.test("prompts of encoders: what cannot be", () =>
  onCpu(async () => {
    const long = (count: number) =>
      tensor([Array.from({ length: count }, () => 2)], { dtype: "i32" });
    for (const [Model, left] of [[BertModel, 16], [RobertaModel, 14]] as const) {
      const model = new Model(sizes);
      await injectPrompt(model, prompt);
      assertEquals(model.forward(long(left)).shape, [1, left, 16]);
      assertThrows(
        () => model.forward(long(left + 1)),
        RangeError,
        `a prompt of 4 virtual tokens leaves ${left} of ${left + 4} positions, got ${left + 1}`,
      );
    }
    const model = new BertForSequenceClassification(sizes);
    addAdapter(model, { target_modules: ["query"] }, { name: "lora" });
    await injectPrompt(model, { ...prompt, task_type: "SEQ_CLS" }, { name: "prompt" });
    const run = () => withRowAdapters(model, ["lora", "__base__"], () => 0);
    assertThrows(run, TypeError, '"prompt" is active and has its own copy of a module');
    assertThrows(() => withRowAdapters(model, ["prompt"], () => 0), TypeError, "is a soft prompt");
    setActive(model);
    assertEquals(run(), 0);
  }));

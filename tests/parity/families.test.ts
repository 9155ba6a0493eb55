/** Every model family against transformers: see families.py. */

import { assert, assertEquals } from "@std/assert";
import type { Tensor } from "@graft/ml";
import {
  type BertForSequenceClassification,
  type BertModel,
  CausalLM,
  type EncoderBatch,
  type EncoderOptions,
  generateBatch,
  loadModel,
  type PretrainedModel,
} from "@graft/ml/nn";
import { forEachDevice } from "../devices.ts";
import { type Golden, golden, here, near, shifted } from "./golden.ts";

const DECODERS = ["smollm", "mistral", "qwen2", "qwen3", "gpt2"];

/** Logits [B, T, V] where tokens stand, and gradients of `loss` by every parameter, against the golden. */
async function check(
  model: PretrainedModel,
  logits: Tensor,
  loss: Tensor,
  file: Golden,
): Promise<void> {
  loss.backward();
  near("loss", await loss.data(), await file.floats("loss"), 1e-5);
  near("logits", await logits.data(), await file.floats("logits"), 1e-4);
  const names = model.namedParameters();
  for (const [name, parameter] of names) {
    near(name, await parameter.grad!.data(), await file.floats(`grad.${name}`), 1e-3);
    parameter.grad = null;
  }
  assertEquals(
    names.map(([name]) => `grad.${name}`).sort(),
    file.keys.filter((key) => /^grad\.(?!regression|multi_label)/.test(key)).sort(),
  );
}

// One test a device, so that the families share what is compiled.
forEachDevice("parity: decoders are transformers'", async (device, t) => {
  for (const name of DECODERS) {
    await t.step(name, async () => {
      const model = await loadModel(`${here}families/${name}`);
      assert(model instanceof CausalLM);
      await using file = await golden(`families/${name}/golden.safetensors`);
      const inputs = await file.ints("input_ids"), labels = await file.ints("labels");
      const is = (await file.ints("attention_mask")).ne(0); // [B, T]
      const mask = is.unsqueeze(1).unsqueeze(1); // [B, 1, 1, T]
      const logits = model.logits(model.forward(inputs, { mask })).mul(is.unsqueeze(2).to("f32"));
      await check(model, logits, model.loss({ inputs, targets: shifted(labels) }, { mask }), file);

      // A software GPU takes seconds to compile each kernel that only a few lines here need.
      const compiles = device.name !== "cpu";
      if (file.keys.includes("logits.scaled") && !compiles) {
        const config = { scale_attn_by_inverse_layer_idx: true, scale_attn_weights: false };
        const other = await loadModel(`${here}families/${name}`, { config }) as CausalLM;
        const scaled = other.logits(other.forward(inputs, { mask }));
        near(
          "logits.scaled",
          await scaled.mul(is.unsqueeze(2).to("f32")).data(),
          await file.floats("logits.scaled"),
          1e-4,
        );
      }

      if (compiles && name !== "mistral") return;
      const list = async (key: string): Promise<number[]> => [
        ...await (await file.ints(key)).data(),
      ];
      const prompts = [await list("prompt.0"), await list("prompt.1")];
      const rows = await generateBatch(model, prompts, { maxTokens: 12, stopTokens: [] });
      assertEquals(rows[0].tokens, await list("greedy.0"));
      assertEquals(rows[1].tokens, await list("greedy.1"));
    });
  }
});

const ENCODERS = [
  "bert_sequence",
  "bert_token",
  "bert_masked",
  "roberta_sequence",
  "roberta_regression",
  "roberta_token",
  "roberta_masked",
];

/** Inputs and masks of an encoder's golden file. */
async function encoderInputs(file: Golden): Promise<{ inputs: Tensor } & EncoderOptions> {
  return {
    inputs: await file.ints("input_ids"),
    attentionMask: await file.ints("attention_mask"),
    tokenTypes: file.keys.includes("token_type_ids")
      ? await file.ints("token_type_ids")
      : undefined,
  };
}

type Classifier = PretrainedModel & {
  forward(ids: Tensor, options: EncoderOptions): Tensor;
  loss(batch: EncoderBatch): Tensor;
};

forEachDevice("parity: encoders are transformers'", async (_device, t) => {
  for (const name of ENCODERS) {
    await t.step(name, async () => {
      const model = await loadModel(`${here}families/${name}`) as Classifier;
      await using file = await golden(`families/${name}/golden.safetensors`);
      const { inputs, ...options } = await encoderInputs(file);
      const labels = await file.tensor("labels");
      const loss = model.loss({ inputs, labels, ...options });
      await check(model, model.forward(inputs, options), loss, file);
    });
  }
  await t.step("bert_base", async () => {
    const model = await loadModel(`${here}families/bert_base`) as BertModel;
    await using file = await golden("families/bert_base/golden.safetensors");
    const { inputs, ...options } = await encoderInputs(file);
    const hidden = model.forward(inputs, options);
    near("hidden", await hidden.data(), await file.floats("hidden"), 1e-4);
    near("pooled", await model.pooled(hidden).data(), await file.floats("pooled"), 1e-4);
  });
  await t.step("problem types", async () => {
    await using file = await golden("families/bert_sequence/golden.safetensors");
    const inputs = await encoderInputs(file);
    for (const problem_type of ["regression", "multi_label_classification"]) {
      const config = { problem_type };
      const model = await loadModel(`${here}families/bert_sequence`, { config }) as Classifier;
      const loss = model.loss({ ...inputs, labels: await file.tensor(`labels.${problem_type}`) });
      loss.backward();
      near(problem_type, await loss.data(), await file.floats(`loss.${problem_type}`), 1e-5);
      const { grad } = (model as BertForSequenceClassification).classifier.weight;
      const key = `grad.${problem_type}.classifier.weight`;
      near(key, await grad!.data(), await file.floats(key), 1e-3);
    }
  });
});

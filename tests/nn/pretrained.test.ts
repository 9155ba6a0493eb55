/** Folders of Hugging Face's layout: what loads, what is written, and what is refused. */

import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { init, openSafetensors, tensor, writeSafetensors } from "@graft/ml";
import {
  BertForSequenceClassification,
  BertForTokenClassification,
  BertModel,
  CausalLM,
  generateBatch,
  GPT2LMHeadModel,
  LlamaForCausalLM,
  loadModel,
  MistralForCausalLM,
  type PretrainedModel,
  Qwen2ForCausalLM,
  Qwen3ForCausalLM,
  RobertaForMaskedLM,
  RobertaModel,
} from "@graft/ml/nn";

const FAMILIES = new URL("../parity/families/", import.meta.url).pathname;

function test(name: string, fn: (folder: string) => Promise<void>): void {
  Deno.test({
    name: `pretrained: ${name}`,
    sanitizeOps: false,
    sanitizeResources: false,
    fn: async () => {
      const device = await init({ device: "cpu" });
      const folder = await Deno.makeTempDir();
      try {
        await fn(folder);
      } finally {
        await Deno.remove(folder, { recursive: true });
        await device.close();
      }
    },
  });
}

type Tensors = Map<string, { dtype: "F32"; shape: readonly number[]; data: Uint8Array }>;

/** The tensors of a family's weights. */
async function weights(family: string): Promise<Tensors> {
  await using file = await openSafetensors(`${FAMILIES}${family}/model.safetensors`);
  const found: Tensors = new Map();
  for (const [key, { shape }] of file.entries) {
    found.set(key, { dtype: "F32", shape, data: await file.read(key) });
  }
  return found;
}

/** Writes a folder of a family, its weights and configuration changed. */
async function variant(
  folder: string,
  family: string,
  change: (tensors: Tensors) => Tensors,
  config: Record<string, unknown> = {},
): Promise<void> {
  const text = await Deno.readTextFile(`${FAMILIES}${family}/config.json`);
  await Deno.writeTextFile(
    `${folder}/config.json`,
    JSON.stringify({ ...JSON.parse(text), ...config }),
  );
  await writeSafetensors(`${folder}/model.safetensors`, [...change(await weights(family))], {
    format: "pt",
  });
}

const same = (tensors: Tensors): Tensors => tensors;
const renamed = (rename: (key: string) => string) => (tensors: Tensors): Tensors =>
  new Map([...tensors].map(([key, value]) => [rename(key), value]));

const IDS = [[5, 9, 14, 33, 2, 8]];

async function logits(model: PretrainedModel): Promise<ArrayLike<number>> {
  const ids = tensor(IDS, { dtype: "i32" });
  if (model instanceof CausalLM) return await model.logits(model.forward(ids)).data();
  return await (model as BertModel).forward(ids).data();
}

test("every family is saved as it was, byte for byte", async (folder) => {
  for await (const { name, isDirectory } of Deno.readDir(FAMILIES)) {
    if (!isDirectory) continue;
    const model = await loadModel(`${FAMILIES}${name}`);
    assertEquals(model.training, false);
    await model.savePretrained(`${folder}/${name}`);
    for (const file of ["config.json", "model.safetensors"]) {
      assertEquals(
        await Deno.readFile(`${folder}/${name}/${file}`),
        await Deno.readFile(`${FAMILIES}${name}/${file}`),
        `${name}/${file}`,
      );
    }
  }
});

test("the class is that of the architecture, or of the model_type", async (folder) => {
  assert(await loadModel(`${FAMILIES}mistral`) instanceof MistralForCausalLM);
  assert(await loadModel(`${FAMILIES}qwen2`) instanceof Qwen2ForCausalLM);
  assert(await loadModel(`${FAMILIES}qwen3`) instanceof Qwen3ForCausalLM);
  assert(await loadModel(`${FAMILIES}roberta_masked`) instanceof RobertaForMaskedLM);
  await variant(folder, "bert_base", same, { architectures: undefined });
  assert(await loadModel(folder) instanceof BertModel);
  await variant(folder, "gpt2", same, { architectures: ["T5Model"], model_type: "t5" });
  const error = await assertRejects(() => loadModel(folder), TypeError);
  assertStringIncludes(error.message, '["T5Model"] with model_type "t5" is not supported');
  assertStringIncludes(error.message, "GPT2LMHeadModel, LlamaForSequenceClassification");
  await assertRejects(
    () => LlamaForCausalLM.fromPretrained(`${FAMILIES}mistral`),
    TypeError,
    'mistral/config.json: needs model_type "llama", has "mistral"',
  );
});

test("parts with an index are one model", async (folder) => {
  const tensors = [...await weights("gpt2")];
  const map: Record<string, string> = {};
  const names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  for (const [i, name] of names.entries()) {
    const part = tensors.filter((_, at) => at % 2 === i);
    for (const [key] of part) map[key] = name;
    await writeSafetensors(`${folder}/${name}`, part, { format: "pt" });
  }
  const write = (weight_map: unknown): Promise<void> =>
    Deno.writeTextFile(`${folder}/model.safetensors.index.json`, JSON.stringify({ weight_map }));
  await write(map);
  await Deno.copyFile(`${FAMILIES}gpt2/config.json`, `${folder}/config.json`);
  const model = await loadModel(folder);
  assertEquals(await logits(model), await logits(await loadModel(`${FAMILIES}gpt2`)));
  await model.savePretrained(`${folder}/saved`);
  assertEquals(
    await Deno.readFile(`${folder}/saved/model.safetensors`),
    await Deno.readFile(`${FAMILIES}gpt2/model.safetensors`),
  );

  await write({ ...map, "transformer.h.7.ln_1.weight": names[0] });
  await assertRejects(
    () => loadModel(folder),
    Error,
    `index.json names tensors that are not there:\n  transformer.h.7.ln_1.weight (in ${names[0]})`,
  );
  await write({ ...map, x: "../elsewhere.safetensors" });
  await assertRejects(() => loadModel(folder), TypeError, 'a file name for "x", has "../else');
  await write(map);
  await Deno.remove(`${folder}/${names[1]}`);
  await assertRejects(() => loadModel(folder), Error, `lacks ${names[1]}, which`);
  await Deno.remove(`${folder}/model.safetensors.index.json`);
  await assertRejects(() => loadModel(folder), Error, "and neither can be opened");
  await Deno.writeTextFile(`${folder}/pytorch_model.bin`, "");
  await assertRejects(
    () => loadModel(folder),
    Error,
    "pytorch_model.bin is there, which only Pyth",
  );
  await Deno.remove(`${folder}/config.json`);
  await assertRejects(() => loadModel(folder), Error, "/config.json");
});

test("keys without the base's name, masks and old names are read", async (folder) => {
  const mask = { dtype: "F32" as const, shape: [1], data: new Uint8Array(4) };
  await variant(folder, "gpt2", (tensors) =>
    new Map([
      ...renamed((key) => key.replace(/^transformer\./, ""))(tensors),
      ["h.0.attn.bias", mask],
      ["h.1.attn.masked_bias", mask],
    ]));
  const gpt2 = await GPT2LMHeadModel.fromPretrained(folder);
  assertEquals(await logits(gpt2), await logits(await loadModel(`${FAMILIES}gpt2`)));
  await gpt2.savePretrained(`${folder}/saved`);
  await using saved = await openSafetensors(`${folder}/saved/model.safetensors`);
  const keys = [...(await weights("gpt2")).keys()].map((key) => key.replace("transformer.", ""));
  assertEquals([...saved.names].sort(), keys.sort());

  const old = (key: string): string =>
    key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
  await variant(folder, "bert_token", renamed(old));
  assertEquals(
    await logits(await loadModel(folder)),
    await logits(await loadModel(`${FAMILIES}bert_token`)),
  );
});

test("the settings of transformers 4 are those of 5", async (folder) => {
  const read = async (family: string): Promise<Record<string, Record<string, unknown>>> =>
    JSON.parse(await Deno.readTextFile(`${FAMILIES}${family}/config.json`));
  const { rope_theta, rope_type: type, ...scaling } = (await read("smollm")).rope_parameters;
  await variant(folder, "smollm", same, {
    rope_parameters: undefined,
    rope_theta,
    rope_scaling: { type, ...scaling },
  });
  assertEquals(
    await logits(await loadModel(folder)),
    await logits(await loadModel(`${FAMILIES}smollm`)),
  );
  // layer_types is newer than max_window_layers, and says the same here.
  await variant(folder, "qwen2", same, { layer_types: undefined });
  const qwen2 = await loadModel(`${FAMILIES}qwen2`);
  assertEquals(await logits(await loadModel(folder)), await logits(qwen2));
  assertEquals((qwen2 as Qwen2ForCausalLM).config.traits.windows, [0, 4]);
});

test("sizes that do not fit the weights are listed with both shapes", async (folder) => {
  await variant(folder, "gpt2", same, { n_inner: 20, vocab_size: 70 });
  const error = await assertRejects(() => loadModel(folder), Error);
  for (
    const line of [
      "transformer.wte.weight (needs [70, 32], has [61, 32])",
      "transformer.h.0.mlp.c_fc.weight (needs [32, 20], has [32, 40])",
      "transformer.h.1.mlp.c_proj.weight (needs [20, 32], has [40, 32])",
      `are those of ${folder}/config.json`,
    ]
  ) assertStringIncludes(error.message, line);
  const packed = { quant_method: "gptq", bits: 4 };
  await variant(folder, "gpt2", same, { quantization_config: packed });
  await assertRejects(() => loadModel(folder), TypeError, '(quantization_config, "gptq") are not');
  await variant(folder, "gpt2", same, { n_layer: 3 });
  await assertRejects(() => loadModel(folder), Error, "transformer.h.2.attn.c_attn.weight");
});

test("an encoder gets a new head", async (folder) => {
  const from = `${FAMILIES}bert_masked`;
  await assertRejects(
    () => BertForSequenceClassification.fromPretrained(from),
    Error,
    "which is of a BertForMaskedLM; { newHead: true } starts",
  );
  const options = { newHead: true, config: { num_labels: 4 } };
  const model = await BertForSequenceClassification.fromPretrained(from, options);
  assertEquals(model.classifier.weight.shape, [4, 24]);
  const masked = await loadModel(from);
  const key = "bert.encoder.layer.1.output.dense.weight";
  assertEquals(
    await model.stateDict().get(key)!.data(),
    await masked.stateDict().get(key)!.data(),
  );
  await model.savePretrained(folder);
  const config = JSON.parse(await Deno.readTextFile(`${folder}/config.json`));
  assertEquals(config.architectures, ["BertForSequenceClassification"]);
  assertEquals(config.label2id.LABEL_3, 3);
  assertEquals(config.num_labels, undefined);
  // What did not change stays as it was written.
  assertStringIncludes(await Deno.readTextFile(`${folder}/config.json`), '"layer_norm_eps": 1e-12');
  const again = await loadModel(folder);
  assertEquals(await logits(again), await logits(model));

  // The other way round: an encoder alone from a folder with a head, and a head on an encoder alone.
  const sequence = await BertForSequenceClassification.fromPretrained(`${FAMILIES}bert_sequence`);
  const alone = await BertModel.fromPretrained(`${FAMILIES}bert_sequence`);
  assertEquals(await logits(alone), await logits(sequence.bert));
  await alone.savePretrained(folder);
  const keys = [...(await weights("bert_base")).keys()];
  await using saved = await openSafetensors(`${folder}/model.safetensors`);
  assertEquals([...saved.names].sort(), keys.sort());
  const tokens = await BertForTokenClassification.fromPretrained(folder, { newHead: true });
  const hidden = async (m: BertModel): Promise<ArrayLike<number>> => await logits(m);
  assertEquals(await hidden(tokens.bert), await hidden(alone));
});

test("a fresh model is written with what it needs", async (folder) => {
  const config = {
    vocab_size: 20,
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
  };
  const model = new RobertaForMaskedLM(config).eval();
  await model.savePretrained(folder);
  const written = JSON.parse(await Deno.readTextFile(`${folder}/config.json`));
  assertEquals(written, {
    architectures: ["RobertaForMaskedLM"],
    dtype: "float32",
    ...config,
    model_type: "roberta",
  });
  const ids = tensor([[3, 4, 5, 1]], { dtype: "i32" });
  const again = await RobertaForMaskedLM.fromPretrained(folder);
  assertEquals(await again.forward(ids).data(), await model.forward(ids).data());
});

test("generation ends as generation_config.json says, and the file is kept", async (folder) => {
  await variant(folder, "mistral", same, { dtype: undefined, torch_dtype: "bfloat16" });
  const text = '{ "eos_token_id": [2, 40],\n "temperature": 1.0 }';
  const prompt = [[5, 9, 14, 33]];
  const [free] = await generateBatch(await MistralForCausalLM.fromPretrained(folder), prompt, {
    maxTokens: 4,
  });
  await Deno.writeTextFile(
    `${folder}/generation_config.json`,
    text.replace("40", `${free.tokens[2]}`),
  );
  const model = await MistralForCausalLM.fromPretrained(folder);
  const [ended] = await generateBatch(model, prompt, { maxTokens: 4 });
  const first = free.tokens.indexOf(free.tokens[2]);
  assertEquals(ended, { tokens: free.tokens.slice(0, first), stop: free.tokens[2] });
  await model.savePretrained(`${folder}/saved`);
  const read = (name: string): Promise<string> => Deno.readTextFile(`${folder}/${name}`);
  assertEquals(await read("saved/generation_config.json"), await read("generation_config.json"));
  // Weights are held, and written, as 32-bit floats whatever they were.
  assertStringIncludes(await read("saved/config.json"), '"torch_dtype": "float32"');
});

// deno-lint-ignore require-await
test("inputs and settings that cannot be are refused", async () => {
  const sizes = {
    vocab_size: 20,
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 2,
    num_attention_heads: 2,
  };
  const refused = (make: () => unknown, message: string): void => {
    assertThrows(make, Error, message);
  };
  refused(() => new MistralForCausalLM({ ...sizes, sliding_window: 0 }), "sliding_window must");
  const qwen = { ...sizes, layer_types: ["full_attention"] };
  refused(() => new Qwen2ForCausalLM(qwen), "layer_types must name full_attention or sliding");
  refused(() => new BertModel({ ...sizes, num_attention_heads: 3 }), "hidden_size must be a mult");
  refused(() => new BertModel({ ...sizes, hidden_act: "mish" }), "hidden_act must be one of gelu");
  refused(() => new BertModel({ ...sizes, is_decoder: true }), "is_decoder is not built");
  const gpt2 = { vocab_size: 20, n_embd: 8, n_layer: 1, n_head: 2, n_positions: 4 };
  refused(() => new GPT2LMHeadModel({ ...gpt2, attn_pdrop: 1 }), "attn_pdrop must be in [0, 1)");
  refused(() => new GPT2LMHeadModel({ ...gpt2, model_type: "llama" }), 'model_type "gpt2", has');

  // Tokens of another vocabulary.
  const mistral = new MistralForCausalLM(sizes),
    known = Int32Array.of(3, 4),
    shape = [1, 2] as const;
  const stray = Int32Array.of(3, 20);
  refused(() => mistral.loss({ inputs: stray, targets: known, shape }), "index 20 at position 1");
  refused(
    () => mistral.loss({ inputs: known, targets: stray, shape }),
    "target 20 at position 1 is",
  );

  const ids = tensor([[3, 4, 5, 6, 7]], { dtype: "i32" });
  refused(() => new GPT2LMHeadModel(gpt2).forward(ids), "positions below n_positions, 4, got 4");
  const bert = new BertForSequenceClassification({ ...sizes, max_position_embeddings: 5 });
  refused(() => bert.forward(ids.pad(1, 0, 1)), "has positions for 5 tokens");
  // RoBERTa's positions begin after that of padding.
  const roberta = new RobertaModel({ ...sizes, max_position_embeddings: 6 });
  refused(() => roberta.forward(ids), "has positions for 4 tokens");
  const attentionMask = tensor([[1, 1]], { dtype: "i32" });
  refused(() => bert.forward(ids, { attentionMask }), "attentionMask [1, 5], got [1, 2]");
  const labels = tensor([[1, 0, 1]]);
  refused(() => bert.loss({ inputs: ids, labels }), "needs labels f32 [1, 2], got f32 [1, 3]");
});

test("dropout acts in training, in attention too", async () => {
  const config = {
    vocab_size: 40,
    hidden_size: 8,
    intermediate_size: 8,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    hidden_dropout_prob: 0,
    attention_probs_dropout_prob: 0.5,
  };
  const model = new BertModel(config);
  assertNotEquals(await logits(model), await logits(model));
  model.eval();
  assertEquals(await logits(model), await logits(model));
});

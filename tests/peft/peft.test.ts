/** LoRA: which layers, what it computes, what it leaves as it was, and bad adapters. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { init, manualSeed, normal, read, type Tensor, tensor, useDevice } from "@graft/ml";
import { Linear, LlamaForCausalLM, Module } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import {
  countParameters,
  decodeKey,
  encodeKey,
  findTargets,
  inject,
  loadAdapter,
  type LoraConfig,
  LoraLinear,
  mergeAndUnload,
  resolveLoraConfig,
  saveAdapter,
  setActive,
  unload,
  withoutAdapters,
} from "@graft/ml/peft";
import { findSaved } from "../../peft/target.ts";
import { forEachDevice } from "../devices.ts";

const config = {
  vocab_size: 23,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 3,
  num_attention_heads: 2,
};
const ids = (): Tensor => tensor([[1, 5, 7, 2, 9]], { dtype: "i32" });
const logits = async (model: LlamaForCausalLM): Promise<Float32Array> =>
  await model.logits(model.forward(ids())).data() as Float32Array;

function apart(a: Float32Array, b: Float32Array): number {
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);
}

async function randomised(model: LlamaForCausalLM, name = "default"): Promise<void> {
  for (const module of model.modules()) {
    const adapter = module instanceof LoraLinear ? module.adapters.get(name) : undefined;
    adapter?.lora_B.weight.assign(normal(adapter.lora_B.weight.shape, { std: 0.3 }));
  }
  await model.lm_head.weight.data();
}

Deno.test("peft: targets are PEFT's", async () => {
  const device = await init({ device: "meta" });
  const model = new LlamaForCausalLM(config);
  const cases: [LoraConfig, number][] = [
    [{}, 6], // q_proj and v_proj
    [{ target_modules: ["q_proj"] }, 3],
    [{ target_modules: ["proj"] }, -1], // an ending after a dot, not any ending
    [{ target_modules: ["self_attn.q_proj", "mlp.up_proj"] }, 6],
    [{ target_modules: ["model.layers.1.self_attn.q_proj"] }, 1],
    [{ target_modules: "q_proj" }, -1], // a string is matched with the whole name
    [{ target_modules: ".*\\.q_proj" }, 3],
    [{ target_modules: ".*layers\\.[02].*(q|k)_proj" }, 4],
    [{ target_modules: "all-linear" }, 21], // not the output layer
    [{ target_modules: "all-linear", exclude_modules: ["down_proj"] }, 18],
    [{ target_modules: "all-linear", exclude_modules: ".*mlp.*" }, 12],
    [{ target_modules: ["lm_head"] }, 1],
    [{ target_modules: ["q_proj"], layers_to_transform: [0, 2] }, 2],
    [{ target_modules: ["q_proj"], layers_to_transform: 1, layers_pattern: "layers" }, 1],
    [{ target_modules: ["q_proj"], layers_to_transform: [0], layers_pattern: "blocks" }, -1],
    [{ target_modules: ["lm_head"], layers_to_transform: [0] }, -1],
    [{ target_modules: ["embed_tokens"] }, 1],
    [{ target_modules: ["norm"] }, -1], // neither linear nor an embedding
    [{ target_modules: ".*" }, -1], // everything
    [{ target_modules: "all-linear", modules_to_save: ["mlp"] }, 12], // copied, not adapted
    [{ target_modules: "all-linear", modules_to_save: ["up_proj", "norm"] }, 18],
    [{ target_modules: [] }, -1],
  ];
  // Any ending, unlike a target: 3 layers with 2 norms each, and the last one.
  assertEquals(findSaved(model, { modules_to_save: ["norm"] }).length, 7);
  for (const [change, count] of cases) {
    const resolved = resolveLoraConfig(change);
    if (count < 0) assertThrows(() => findTargets(model, resolved), Error, "LoRA");
    else assertEquals(findTargets(model, resolved).length, count, JSON.stringify(change));
  }
  const ranks = findTargets(
    model,
    resolveLoraConfig({
      target_modules: ["q_proj", "v_proj"],
      rank_pattern: { "layers.1.self_attn.q_proj": 2, "v_proj": 16 },
      alpha_pattern: { ".*layers\\.2.*": 32 },
    }),
  ).map(({ r, alpha }) => `${r}/${alpha}`);
  assertEquals(ranks, ["8/8", "16/8", "2/8", "16/8", "8/32", "16/32"]);
  await device.close();
  useDevice(null);
});

Deno.test("peft: what is not built, or cannot be, is refused by its key", () => {
  const bad: [Record<string, unknown>, string][] = [
    [{ peft_type: "PREFIX_TUNING" }, "peft_type"],
    [{ use_qalora: true }, "use_qalora true is not built"],
    [{ bias: "some" }, "bias"],
    [{ modules_to_save: "lm_head" }, "modules_to_save"],
    [{ init_lora_weights: "loftq", loftq_config: { loftq_bits: 2 } }, "loftq_bits must be 4 or 8"],
    [{ init_lora_weights: "loftq", loftq_config: { loftq_iter: 0 } }, "loftq_iter"],
    [{ init_lora_weights: "corda" }, '"corda", which takes directions from data too, is not built'],
    [{ init_lora_weights: "eva", eva_config: { rho: 0.5 } }, "eva_config: rho must be a number"],
    [{ init_lora_weights: "eva", eva_config: { whiten: 1 } }, "eva_config: whiten must be true or"],
    [{ init_lora_weights: "orthogonal", r: 3 }, "even ranks"],
    [{ use_dora: true, lora_bias: true }, "lora_bias"],
    [{ r: 0 }, "r must be"],
    [{ r: 2.5 }, "r must be"],
    [{ lora_dropout: 1 }, "lora_dropout"],
    [{ lora_alpha: "8" }, "lora_alpha"],
    [{ target_modules: [1] }, "target_modules"],
    [{ target_modules: "q", layers_to_transform: [0] }, "layers_to_transform"],
    [{ target_modules: ["q"], layers_pattern: "layers" }, "layers_pattern"],
  ];
  for (const [change, part] of bad) assertThrows(() => resolveLoraConfig(change), Error, part);
  const warnings: string[] = [];
  resolveLoraConfig({ new_feature: 1 }, "x", (text) => warnings.push(text));
  assertEquals(warnings, ["x: unknown keys are kept but not used: new_feature"]);
});

Deno.test("peft: keys are encoded without loss, whatever a module is called", () => {
  for (
    const path of ["a", "model.layers.0.q_proj", "lora_A.weight", "x.lora_B.weight.y", "default"]
  ) {
    for (const part of ["lora_A.weight", "lora_B.weight", "lora_embedding_A", "base_layer.bias"]) {
      assertEquals(decodeKey(encodeKey(path, part)), { path, part });
    }
  }
  assertEquals(decodeKey("model.q_proj.lora_A.weight"), null);
  assertEquals(decodeKey("base_model.model.q_proj.weight"), null);
});

forEachDevice(
  "peft: an adapter starts as nothing, moves alone, can be left out and merged",
  async () => {
    manualSeed(1);
    const model = new LlamaForCausalLM({ ...config, tie_word_embeddings: true });
    const base = await logits(model);
    const keys = [...model.stateDict().keys()];
    inject(model, { r: 4, lora_alpha: 8, target_modules: ["q_proj", "lm_head"] });
    assertEquals([...model.stateDict().keys()], keys); // base checkpoints load unchanged
    assertEquals(countParameters(model).trainable, 3 * 4 * 32 + 4 * (16 + 23));
    assertEquals(apart(await logits(model), base), 0);

    const frozen = new Map<string, Float32Array<ArrayBuffer>>();
    for (const [key, variable] of model.stateDict()) {
      frozen.set(
        key,
        await variable.data() as Float32Array<ArrayBuffer>,
      );
    }
    const optimizer = new AdamW(model.trainable(), { lr: 0.05 });
    const targets = tensor([[5, 7, 2, 9, 3]], { dtype: "i32" });
    const losses: number[] = [];
    for (let step = 0; step < 4; step++) {
      const loss = model.loss({ inputs: ids(), targets });
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      losses.push(await loss.item());
    }
    assert(losses[3] < losses[0], `${losses}`);
    for (const [key, variable] of model.stateDict()) {
      assertEquals(
        await variable.data(),
        frozen.get(key),
      );
    }
    for (const p of model.trainable()) assert((await p.data()).some((x) => x !== 0), p.name!);

    const adapted = await logits(model);
    assert(apart(adapted, base) > 1e-3);
    assertEquals(apart(await withoutAdapters(model, () => logits(model)), base), 0);
    await assertRejects(() => withoutAdapters(model, () => Promise.reject(new Error("inside"))));
    assertEquals(apart(await logits(model), adapted), 0); // back, also after an error
    await mergeAndUnload(model);
    assert(!model.modules().some((m) => m instanceof LoraLinear));
    assert(apart(await logits(model), adapted) < 1e-5);
    assertEquals(
      await model.model.embed_tokens.weight.data(),
      frozen.get("model.embed_tokens.weight"),
    );
  },
);

forEachDevice("peft: several adapters, one model", async () => {
  manualSeed(2);
  const model = new LlamaForCausalLM(config);
  const base = await logits(model);
  inject(model, { target_modules: ["q_proj"] }, { name: "a" });
  inject(model, { target_modules: ["v_proj", "q_proj"], use_rslora: true }, { name: "b" });
  await randomised(model, "a");
  await randomised(model, "b");
  const b = await logits(model);
  setActive(model, "a");
  const a = await logits(model);
  setActive(model, "a", "b");
  const both = await logits(model);
  for (const [x, y] of [[a, base], [b, base], [a, b], [both, a], [both, b]]) {
    assert(apart(x, y) > 1e-3);
  }
  setActive(model, "b");
  assertEquals(apart(await logits(model), b), 0);
  assertThrows(() => setActive(model, "c"), Error, 'no adapter "c"');
  assertThrows(() => inject(model, {}, { name: "a" }), Error, "already");
  unload(model);
  assertEquals(apart(await logits(model), base), 0);
});

forEachDevice(
  "peft: an adapter is saved and loaded; one that does not fit changes nothing",
  async () => {
    const folder = await Deno.makeTempDir();
    manualSeed(3);
    const model = new LlamaForCausalLM(config);
    const base = await logits(model);
    const targets = { r: 4, target_modules: ["q_proj", "o_proj"] };
    inject(model, targets);
    await randomised(model);
    await saveAdapter(model, folder);
    const adapted = await logits(model);
    unload(model);
    manualSeed(4);
    await loadAdapter(model, folder);
    assert(apart(await logits(model), adapted) === 0 && model.trainable().length === 0);
    unload(model);

    // What JSON does not tell apart, and what an older PEFT left out, is written as it was.
    const path = `${folder}/adapter_config.json`;
    const newest = await Deno.readTextFile(path);
    const older = newest.replace(
      '"alpha_pattern": {}',
      '"alpha_pattern": {\n    "o_proj": 16.0\n  }',
    )
      .replace('"lora_alpha": 8', '"lora_alpha": 8.0').replace(
        '"lora_dropout": 0.0',
        '"lora_dropout": 1e-05',
      )
      .replace(/ {2}"(peft_version|kasa_config|lora_ga_config)".*\n/g, "");
    assertEquals(older.split("\n").length, newest.split("\n").length + 2 - 3);
    await Deno.writeTextFile(path, older);
    const { lora_alpha } = await loadAdapter(model, folder) as LoraConfig;
    assertEquals(lora_alpha, 8);
    await saveAdapter(model, `${folder}/again`);
    assertEquals(await Deno.readTextFile(`${folder}/again/adapter_config.json`), older);
    unload(model);
    await Deno.writeTextFile(path, newest);

    // Another model: all that does not fit is listed.
    const other = new LlamaForCausalLM({ ...config, hidden_size: 8, num_hidden_layers: 4 });
    const error = await assertRejects(() => loadAdapter(other, folder), Error);
    assert(error.message.includes("4 keys are missing"), error.message);
    assert(error.message.includes("12 keys have other shapes"), error.message);
    assert(!other.modules().some((m) => m instanceof LoraLinear));
    const text = await Deno.readTextFile(`${folder}/adapter_config.json`);
    const broken: [string, string][] = [
      [text.replace('"r": 4', '"r": 2'), "keys have other shapes"],
      [text.replace('"q_proj"', '"up_proj"'), "keys are unexpected"],
      [text.replace('"use_dora": false', '"use_dora": true'), "lora_magnitude_vector"],
      [text.replace('"peft_type"', '"peft_kind"'), "peft_type"],
      [text.slice(0, 40), "is not JSON"],
      ["[]", "needs a JSON object"],
    ];
    for (const [content, part] of broken) {
      await Deno.writeTextFile(`${folder}/adapter_config.json`, content);
      await assertRejects(() => loadAdapter(model, folder, { warn: () => {} }), Error, part);
      assertEquals(apart(await logits(model), base), 0);
    }
    await Deno.writeTextFile(`${folder}/adapter_config.json`, text);
    const weights = await Deno.readFile(`${folder}/adapter_model.safetensors`);
    await Deno.writeFile(`${folder}/adapter_model.safetensors`, weights.subarray(0, -8));
    await assertRejects(() => loadAdapter(model, folder), Error, "truncated");
    await Deno.remove(`${folder}/adapter_model.safetensors`);
    await assertRejects(() => loadAdapter(model, folder), Error, "adapter_model.safetensors");
    await Deno.writeTextFile(`${folder}/adapter_model.bin`, "");
    await assertRejects(() => loadAdapter(model, folder), Error, "load the adapter with PEFT");
    await Deno.rename(`${folder}/adapter_config.json`, `${folder}/config.json`);
    await assertRejects(() => loadAdapter(model, folder), Error, "holds a model, no adapter");
    await Deno.remove(folder, { recursive: true });
  },
);

forEachDevice("peft: A starts uniform, B zero", async () => {
  manualSeed(5);
  class One extends Module {
    layer: Linear = new Linear(64, 8);
  }
  const model = inject(new One(), { r: 16, target_modules: ["layer"] });
  const { lora_A, lora_B } = (model.layer as LoraLinear).adapters.get("default")!;
  const [a, b] = await read(lora_A.weight, lora_B.weight) as [Float32Array, Float32Array];
  assert(b.every((x) => x === 0));
  // Kolmogorov and Smirnov: the largest distance from the uniform distribution on ±1/√64.
  const sorted = a.toSorted();
  const n = sorted.length;
  const distance = sorted.reduce(
    (most, x, i) => Math.max(most, Math.abs((x + 0.125) / 0.25 - (i + 0.5) / n)),
    0,
  );
  assert(distance < 1.63 / Math.sqrt(n), `${distance}`); // the 1 % level
});

Deno.test("peft: GPT-3 with r = 4 on q and v trains ten thousand times fewer parameters", async () => {
  const device = await init({ device: "meta" });
  const model = inject(
    new LlamaForCausalLM({
      vocab_size: 50257,
      hidden_size: 12288,
      intermediate_size: 32768, // three matrices of a gated layer: as many numbers as GPT-3's two
      num_hidden_layers: 96,
      num_attention_heads: 96,
    }),
    { r: 4, target_modules: ["q_proj", "v_proj"] },
  );
  const { trainable, total } = countParameters(model);
  assertEquals(trainable, 96 * 2 * 4 * (12288 + 12288)); // 18.9 million
  // The paper says "roughly 10,000 times, from 350GB to 35MB". At two bytes a number these are:
  assertEquals(Math.round((total - trainable) * 2 / 1e9), 350);
  assertEquals(trainable * 2, 36 * 2 ** 20); // 37.7 million bytes
  assertEquals(Math.round((total - trainable) / trainable), 9282);
  await device.close();
  useDevice(null);
});

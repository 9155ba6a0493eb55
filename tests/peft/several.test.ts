/** Several adapters in one model: three sets, rows of a batch, orders of merging; a classifier's head. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { init, manualSeed, normal, type Tensor, tensor, useDevice } from "@graft/ml";
import { LlamaForCausalLM, loadModel, type RobertaForSequenceClassification } from "@graft/ml/nn";
import {
  adapterState,
  adapterStatus,
  addAdapter,
  deleteAdapter,
  describeParameters,
  inject,
  layerStatus,
  loadAdapter,
  LoraLinear,
  merge,
  mergeAndUnload,
  saveAdapters,
  setActive,
  setTrainable,
  unload,
  unmerge,
  withAdapters,
  withoutAdapters,
  withRowAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";

const small = {
  vocab_size: 23,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  attention_bias: true,
};
const rows = [[1, 5, 7], [3, 2, 9], [1, 5, 7]];
const ids = (): Tensor => tensor(rows, { dtype: "i32" });
const fresh = (): LlamaForCausalLM => {
  manualSeed(7);
  return new LlamaForCausalLM({ ...small, initializer_range: 0.3 });
};
const logits = async (model: LlamaForCausalLM): Promise<Float32Array> =>
  await model.logits(model.forward(ids())).data() as Float32Array;
const apart = (a: Float32Array, b: Float32Array): number =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);

/** Stands in for training: every parameter of the adapter moves. */
function moved(model: LlamaForCausalLM, name = "default"): void {
  for (const parameter of adapterState(model, name).values()) {
    parameter.assign(parameter.add(normal(parameter.shape, { std: 0.2 })));
  }
}

forEachDevice("peft: adapters are attached, active and trained apart; rows mix them", async () => {
  const model = fresh();
  const base = await logits(model);
  // Names that modules and parts have.
  inject(model, { r: 2, target_modules: ["q_proj"] }, { name: "lora" });
  addAdapter(model, { r: 2, target_modules: ["q_proj", "v_proj"] }, { name: "q_proj" });
  addAdapter(model, { r: 2, target_modules: ["q_proj"], modules_to_save: ["lm_head"] }, {
    name: "weight",
  });
  assertEquals(adapterStatus(model), {
    attached: ["lora", "q_proj", "weight"],
    active: ["lora"],
    trainable: ["lora", "q_proj", "weight"],
    merged: [],
  });
  setTrainable(model, "q_proj");
  assertEquals(adapterStatus(model).active, ["lora"]);
  assertEquals(adapterStatus(model).trainable, ["q_proj"]);
  const at = (path: string) => ({ path: `model.layers.0.self_attn.${path}`, kind: "LoraLinear" });
  assertEquals(layerStatus(model), [
    {
      ...at("q_proj"),
      attached: ["lora", "q_proj", "weight"],
      active: ["lora"],
      trainable: ["q_proj"],
      merged: [],
    },
    { ...at("v_proj"), attached: ["q_proj"], active: [], trainable: ["q_proj"], merged: [] },
    { path: "lm_head", kind: "Own", attached: ["weight"], active: [], trainable: [], merged: [] },
  ]);
  for (const name of ["lora", "q_proj", "weight"]) moved(model, name);
  const outputs: Record<string, Float32Array> = { __base__: base };
  for (const name of ["lora", "q_proj", "weight"]) {
    outputs[name] = await withAdapters(model, [name], () => logits(model));
  }
  assertEquals(adapterStatus(model).active, ["lora"]);
  for (const mix of [["weight", "__base__", "lora"], ["q_proj", "q_proj", "lora"]]) {
    const mixed = await withRowAdapters(model, mix, () => logits(model));
    const size = mixed.length / 3;
    mix.forEach((name, i) => {
      const part = (x: Float32Array): Float32Array => x.subarray(i * size, (i + 1) * size);
      assert(apart(part(mixed), part(outputs[name])) < 1e-4, `${mix}: ${name}`);
    });
  }
  assertThrows(() => withRowAdapters(model, ["x"], () => 0), Error, 'no adapter "x"');
  assertThrows(
    () => withRowAdapters(model, ["lora", "weight"], () => model.forward(ids())),
    RangeError,
    "2 adapters for a batch of 2 rows",
  );
  // In files as in memory: names are folders, and in no key.
  const folder = await Deno.makeTempDir();
  addAdapter(model, { r: 2, target_modules: ["k_proj"] });
  const folders = await saveAdapters(model, folder);
  assertEquals(folders.get("default"), folder);
  const again = fresh();
  for (const [name, own] of folders) {
    assertEquals(own, name === "default" ? folder : `${folder}/${name}`);
    await loadAdapter(again, own, { name });
    if (name !== "default") assert(apart(await logits(again), outputs[name]) < 1e-6, name);
  }
  await assertRejects(() => saveAdapters(unload(again), folder), Error, "has no adapter");
  await Deno.remove(folder, { recursive: true });
  deleteAdapter(model, "default");
  // The order of merges does not matter, and deleting one leaves the others.
  const orders: Float32Array[] = [];
  for (const names of [["lora", "q_proj"], ["q_proj", "lora"]]) {
    await merge(model, { adapters: names });
    orders.push(await logits(model));
    unmerge(model);
  }
  assert(apart(orders[0], orders[1]) < 1e-3);
  deleteAdapter(model, "lora");
  setActive(model, "q_proj");
  assert(apart(await logits(model), outputs.q_proj) < 1e-6);
  assertThrows(() => deleteAdapter(model, "lora"), Error, 'no adapter "lora"');
  deleteAdapter(deleteAdapter(model, "weight"), "q_proj");
  assert(!model.modules().some((m) => m instanceof LoraLinear));
  assertEquals(apart(await logits(model), base), 0);
});

Deno.test("peft: a classifier is trained with its head, a copy of which each adapter has", async () => {
  const device = await init({ device: "cpu" });
  const path = new URL("../parity/families/roberta_sequence", import.meta.url).pathname;
  const model = await loadModel(path) as RobertaForSequenceClassification;
  const outputs = async (): Promise<Float32Array> =>
    await model.forward(ids()).data() as Float32Array;
  const base = await outputs();
  inject(model, { r: 2, task_type: "SEQ_CLS" }, { name: "a" });
  addAdapter(model, { r: 2, task_type: "SEQ_CLS", bias: "all" }, { name: "b" });
  const keys = [...adapterState(model, "a").keys()].filter((key) => key.includes(".classifier."));
  assertEquals(
    keys,
    ["dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"].map((key) =>
      `base_model.model.classifier.${key}`
    ),
  );
  manualSeed(11);
  for (const name of ["a", "b"]) {
    for (const p of adapterState(model, name).values()) {
      p.assign(p.add(normal(p.shape, { std: 0.2 })));
    }
  }
  const alone: Record<string, Float32Array> = { __base__: base };
  for (const name of ["a", "b"]) alone[name] = await withAdapters(model, [name], outputs);
  assert(apart(alone.a, base) > 1e-3 && apart(alone.a, alone.b) > 1e-3);
  const mix = ["b", "__base__", "a"];
  const mixed = await withRowAdapters(model, mix, outputs);
  const size = mixed.length / 3;
  mix.forEach((name, i) => {
    const part = (x: Float32Array): Float32Array => x.subarray(i * size, (i + 1) * size);
    assert(apart(part(mixed), part(alone[name])) < 1e-4, name);
  });
  assertThrows(() => setActive(model, "a", "b"), Error, "own copy");
  assertEquals(apart(await withoutAdapters(model, outputs), base), 0);
  setActive(model, "b");
  await mergeAndUnload(model);
  assert(apart(await outputs(), alone.b) < 1e-4);
  await device.close();
  useDevice(null);
});

Deno.test("peft: a merge that would not be finite is refused by the layer's name", async () => {
  const device = await init({ device: "cpu" });
  const model = inject(fresh(), { target_modules: ["q_proj", "v_proj"] });
  const layer = model.model.layers[0].self_attn.v_proj as LoraLinear;
  const { weight } = layer.adapters.get("default")!.lora_B;
  await weight.write(new Float32Array(weight.size).fill(NaN));
  const held = await layer.weight.data();
  for (const act of [merge, mergeAndUnload]) {
    const error = await assertRejects(() => act(model), Error, "not finite");
    assert(error.message.includes("model.layers.0.self_attn.v_proj is"), error.message);
  }
  assertEquals(await layer.weight.data(), held);
  assertEquals(adapterStatus(model).merged, []);
  assert(describeParameters(model).startsWith("trainable params: 512 || all params: "));
  await device.close();
  useDevice(null);
});

/** Weighted combinations of adapters: of what they change, whatever they are made of. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { init, manualSeed, normal, type Tensor, tensor, useDevice } from "@graft/ml";
import { Qwen2ForCausalLM } from "@graft/ml/nn";
import {
  adapterState,
  adapterStatus,
  addAdapter,
  addWeightedAdapter,
  type CombinationType,
  deleteAdapter,
  injectPrompt,
  loadAdapter,
  type LoraConfig,
  saveAdapter,
  withAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";

const ids = (): Tensor => tensor([[1, 5, 7], [3, 2, 9]], { dtype: "i32" });
const fresh = (): Qwen2ForCausalLM => {
  manualSeed(7);
  return new Qwen2ForCausalLM({ // whose projections have biases
    vocab_size: 23,
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    initializer_range: 0.3,
  }).eval() as Qwen2ForCausalLM;
};
const logits = async (model: Qwen2ForCausalLM, name: string): Promise<Float32Array> =>
  await withAdapters(
    model,
    [name],
    () => model.logits(model.forward(ids())).data(),
  ) as Float32Array;
const apart = (a: Float32Array, b: Float32Array): number =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);

/** An adapter that stands as if it had been trained. */
function trained(model: Qwen2ForCausalLM, name: string, config: LoraConfig): void {
  addAdapter(model, config, { name });
  for (const parameter of adapterState(model, name).values()) {
    parameter.assign(parameter.add(normal(parameter.shape, { std: 0.2 })));
  }
}

const TYPES: readonly CombinationType[] = [
  "cat",
  "linear",
  "svd",
  "ties",
  "ties_svd",
  "dare_linear",
  "dare_ties",
  "magnitude_prune",
];
const KINDS: Readonly<Record<string, LoraConfig>> = {
  lora: { target_modules: ["q_proj"], lora_alpha: 6 },
  dora: { target_modules: ["q_proj", "down_proj"], use_dora: true },
  "bias all": { target_modules: ["q_proj"], bias: "all" },
  "bias lora_only": { target_modules: ["v_proj"], bias: "lora_only" },
  lora_bias: { target_modules: ["o_proj"], lora_bias: true },
  modules_to_save: { target_modules: ["q_proj"], modules_to_save: ["mlp", "lm_head"] },
};

forEachDevice(
  "combine: one adapter at weight 1 is itself, in every way and kind",
  async (device) => {
    // The arithmetic is the host's: a GPU runs one kind of each.
    const kinds = device.name === "cpu" ? Object.keys(KINDS) : ["dora"];
    const types = device.name === "cpu" ? TYPES : ["cat", "dare_ties"] as const;
    for (const kind of kinds) {
      const model = fresh();
      trained(model, "a", { r: 2, ...KINDS[kind] });
      const alone = await logits(model, "a");
      for (const type of types) {
        await addWeightedAdapter(model, ["a"], [1], { name: "b", type });
        const difference = apart(await logits(model, "b"), alone);
        assert(difference < 1e-4, `${kind}, ${type}: ${difference}`);
        deleteAdapter(model, "b");
      }
    }
  },
);

Deno.test("combine: parts of a whole, kinds that mix, files", async () => {
  const device = await init({ device: "cpu" });
  for (const kind of Object.keys(KINDS)) {
    const model = fresh();
    trained(model, "a", { r: 2, ...KINDS[kind] });
    const alone = await logits(model, "a");
    // The same thing in two parts, and more than itself less the rest.
    for (const [w, v] of [[0.25, 0.75], [1.5, -0.5]]) {
      for (const type of ["cat", "svd"] as const) {
        await addWeightedAdapter(model, ["a", "a"], [w, v], { name: "b", type });
        assert(apart(await logits(model, "b"), alone) < 1e-4, `${kind}, ${type}`);
        deleteAdapter(model, "b");
      }
    }
  }
  // Plain adapters add up; what the file of a combination of several kinds says is loaded again.
  const model = fresh();
  trained(model, "a", { r: 2, ...KINDS.lora });
  trained(model, "b", { r: 3, ...KINDS.lora, use_rslora: true });
  const both = await withAdapters(
    model,
    ["a", "b"],
    () => model.logits(model.forward(ids())).data(),
  ) as Float32Array;
  for (const options of [{ type: "cat" }, { type: "svd", rank: 5 }] as const) {
    await addWeightedAdapter(model, ["a", "b"], [1, 1], { name: "c", ...options });
    assert(apart(await logits(model, "c"), both) < 1e-4, options.type);
    deleteAdapter(model, "c");
  }
  for (const kind of ["bias all", "lora_bias", "modules_to_save"]) {
    trained(model, kind.replace(" ", "_"), { r: 2, ...KINDS[kind] });
  }
  const names = ["a", "bias_all", "lora_bias"];
  const folder = await Deno.makeTempDir();
  for (const adapters of [names, ["a", "modules_to_save"]]) {
    await addWeightedAdapter(model, adapters, adapters.map(() => 0.5), { name: "c" });
    const want = await logits(model, "c");
    assert(adapterState(model, "c").values().every((parameter) => !parameter.requiresGrad));
    assertEquals(adapterStatus(model).active, []);
    await saveAdapter(model, folder, { name: "c" });
    const other = fresh();
    await loadAdapter(other, folder);
    assert(apart(await logits(other, "default"), want) < 1e-6, `${adapters}`);
    deleteAdapter(model, "c");
  }
  await Deno.remove(folder, { recursive: true });
  await device.close();
  useDevice(null);
});

Deno.test("combine: what cannot be is refused, and changes nothing", async () => {
  const device = await init({ device: "cpu" });
  const model = fresh();
  trained(model, "a", { r: 2, ...KINDS.lora });
  trained(model, "dora", { r: 2, ...KINDS.dora });
  trained(model, "copy", { r: 2, target_modules: ["up_proj"], modules_to_save: ["q_proj"] });
  await injectPrompt(model, { peft_type: "PROMPT_TUNING", num_virtual_tokens: 2 }, {
    name: "prompt",
  });
  const attached = adapterStatus(model).attached;
  const name = "c";
  const bad: [string[], number[], Record<string, unknown>, string][] = [
    [["a", "x"], [1, 1], {}, 'no adapter "x"'],
    [[], [], {}, "no adapter"],
    [["a"], [1, 2], {}, "needs 1 weights"],
    [["a"], [NaN], {}, "needs 1 weights"],
    [["a"], [1], { name: "dora" }, "already"],
    [["a"], [1], { density: 0 }, "density must be in (0, 1]"],
    [["a"], [1], { rank: 0 }, "rank must be"],
    [["a"], [1], { type: "linear_svd" }, "type must be one of cat, svd"],
    [["a", "dora"], [1, 1], {}, "dora uses DoRA, a does not"],
    [["a", "copy"], [1, 1], {}, "adapts model.layers.0.self_attn.q_proj, another has a copy"],
    [["a", "prompt"], [1, 1], {}, '"prompt" is a soft prompt'],
  ];
  for (const [adapters, weights, options, part] of bad) {
    await assertRejects(
      () => addWeightedAdapter(model, adapters, weights, { name, ...options }),
      Error,
      part,
    );
    assertEquals(adapterStatus(model).attached, attached);
  }
  await device.close();
  useDevice(null);
});

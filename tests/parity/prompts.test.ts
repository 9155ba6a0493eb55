/** Soft prompts against PEFT: see README.md here. */

import { assert, assertEquals } from "@std/assert";
import { type Device, init, noGrad, tensor, useDevice, type Variable } from "@graft/ml";
import { generate, generateBatch, LlamaForCausalLM } from "@graft/ml/nn";
import {
  injectPrompt,
  keysAndValues,
  loadAdapter,
  type PromptConfig,
  saveAdapter,
  unload,
  withoutAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { golden, here, near, shifted } from "./golden.ts";

/** A software GPU compiles for seconds, so it gets the two ways into a model, the cpu all methods. */
function folders(device: Device): string[] {
  return device.name === "cpu"
    ? ["prompt", "prefix", "prefix_projection", "p_tuning"]
    : ["prompt", "prefix"];
}

async function base(): Promise<LlamaForCausalLM> {
  return await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`);
}

/** PEFT numbers the activations among the layers of its encoders. */
function ourKey(key: string): string {
  return key.replace(/(transform|mlp_head)\.(\d)/, (_, list, i) => `${list}.${i / 2}`);
}

Deno.test("parity: a prompt of PEFT's gives its logits, and is saved as it was", async () => {
  const device = await init({ device: "cpu" });
  const folder = await Deno.makeTempDir();
  const model = await base();
  for (const name of folders(device)) {
    const from = `${here}peft_prompts/${name}`;
    await using file = await golden(`peft_prompts/${name}/golden.safetensors`);
    const inputs = await file.ints("input_ids");
    const logits = async (): Promise<ArrayLike<number>> =>
      await noGrad(() => model.logits(model.forward(inputs))).data();
    await loadAdapter(model, from);
    assertEquals(model.trainable().length, name === "prompt" ? model.parameters().length - 1 : 0);
    near(`${name}: logits`, await logits(), await file.floats("logits_loaded"), 1e-4);
    const without = await withoutAdapters(model, logits);
    near(`${name}: logits without`, without, await file.floats("logits_base"), 1e-4);
    model.freeze();

    await saveAdapter(model, folder);
    for (const part of ["adapter_config.json", "adapter_model.safetensors"]) {
      assertEquals(
        await Deno.readFile(`${folder}/${part}`),
        await Deno.readFile(`${from}/${part}`),
        `${name}: ${part}`,
      );
    }
    unload(model);
  }
  await Deno.remove(folder, { recursive: true });
  await device.close();
  useDevice(null);
});

forEachDevice("parity: gradients of what makes a prompt are PyTorch's", async (device) => {
  const folder = await Deno.makeTempDir();
  const model = await base();
  for (const name of folders(device)) {
    await using file = await golden(`peft_prompts/${name}/golden.safetensors`);
    const inputs = await file.ints("input_ids"), labels = await file.ints("labels");
    const text = await Deno.readTextFile(`${here}peft_prompts/${name}/adapter_config.json`);
    const config = JSON.parse(text) as PromptConfig;
    const start = name.startsWith("prefix") ? "random" : undefined;
    await injectPrompt(model, config, { start });
    const own = new Map<string, Variable>(
      model.prompt!.namedParameters().map(([key, p]) => [key.replace("adapters.default.", ""), p]),
    );
    const keys = file.keys.filter((key) => key.startsWith("grad.")).map((key) => key.slice(5));
    assertEquals(keys.map(ourKey).sort(), [...own.keys()].sort());
    assertEquals(model.trainable().length, keys.length);
    for (const key of keys) {
      await own.get(ourKey(key))!.write(await file.floats(`parameter.${key}`));
    }
    for (const gradientCheckpointing of device.name === "cpu" ? [false, true] : [false]) {
      model.train();
      model.model.gradientCheckpointing = gradientCheckpointing;
      const loss = model.loss({ inputs, targets: shifted(labels) });
      loss.backward();
      near(`${name}: loss`, await loss.data(), await file.floats("loss"), 1e-5);
      for (const key of keys) {
        const variable = own.get(ourKey(key))!;
        near(
          `${name}: ${key}`,
          await variable.grad!.data(),
          await file.floats(`grad.${key}`),
          1e-5, // some are as small as 1e-3
        );
        variable.grad = null;
      }
    }
    if (device.name !== "cpu") {
      unload(model);
      continue;
    }
    // What PEFT would write of it: the configuration to the byte, the rows to rounding.
    await saveAdapter(model, folder);
    assertEquals(await Deno.readTextFile(`${folder}/adapter_config.json`), text);
    unload(model);
    await loadAdapter(model, folder);
    const logits = await noGrad(() => model.logits(model.forward(inputs))).data();
    near(`${name}: logits`, logits, await file.floats("logits"), 1e-4);
    unload(model);
  }
  await Deno.remove(folder, { recursive: true });
});

forEachDevice("parity: generation with a prompt and a cache is PEFT's", async (device) => {
  const model = await base();
  for (const name of device.name === "cpu" ? ["prompt", "prefix"] : ["prefix"]) {
    await using file = await golden(`peft_prompts/${name}/golden.safetensors`);
    const ids = [...await (await file.ints("input_ids")).select(0, 0).data()];
    await loadAdapter(model, `${here}peft_prompts/${name}`);
    const text: number[] = [];
    const maxTokens = device.name === "cpu" ? 16 : 4;
    for await (const id of generate(model, ids, { maxTokens, stopTokens: [] })) text.push(id);
    assertEquals(text, [...await (await file.ints("greedy")).data()].slice(0, maxTokens), name);
    unload(model);
  }
});

Deno.test("parity: a prefix before rows padded on the left, and from a text", async () => {
  const device = await init({ device: "cpu" });
  const model = await base();
  await loadAdapter(model, `${here}peft_prompts/prefix`);
  await using file = await golden("peft_prompts/prefix/golden.safetensors");
  const ids = await file.ints("padded.ids"); // [2, 12], the second row after three of padding
  const rows = [0, 3].map((pad, b) => ids.select(0, b).slice(0, pad));
  const last = await file.floats("padded.last"), size = last.length / 2;
  const best = [0, 1].map((b) => {
    const row = last.subarray(b * size, (b + 1) * size);
    return row.indexOf(Math.max(...row));
  });
  const prompts = await Promise.all(rows.map(async (row) => await row.data()));
  const generated = await generateBatch(model, prompts, { maxTokens: 1, stopTokens: [] });
  assertEquals(generated.map(({ tokens }) => tokens[0]), best);
  const positions = Int32Array.from(
    { length: 24 },
    (_, i) => Math.max(i < 12 ? i : i - 12 - 3, 0),
  );
  const mask = tensor(
    Array.from({ length: 24 }, (_, i) => i < 12 || i >= 15),
  ).reshape(2, 1, 1, 12);
  const hidden = noGrad(() => model.forward(ids, { positions, mask }));
  near("padded", await model.logits(hidden.select(1, 11)).data(), last, 1e-4);
  unload(model);

  await using text = await golden("peft_prompts/from_text.safetensors");
  const tokens = [...await (await text.ints("ids")).data()];
  near("rows", await (await keysAndValues(model, tokens)).data(), await text.floats("rows"), 1e-4);
  const config: PromptConfig = { peft_type: "PREFIX_TUNING", num_virtual_tokens: 4 };
  await injectPrompt(model, config, { tokens });
  // The keys and values of a text before a text: as if the model had read both.
  const after = tensor([[5, 17, 33]], { dtype: "i32" });
  const both = tensor([[...tokens, 5, 17, 33]], { dtype: "i32" });
  const read = await withoutAdapters(model, () => model.forward(both).slice(1, 4).data());
  near("as if read", await model.forward(after).data(), read as Float32Array, 1e-4);
  assert(model.trainable().length === 1);
  await device.close();
  useDevice(null);
});

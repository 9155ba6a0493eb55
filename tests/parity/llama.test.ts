/** Llama and LoRA against PyTorch, transformers and PEFT: see README.md here. */

import { assertEquals } from "@std/assert";
import { generate, LlamaForCausalLM } from "@graft/ml/nn";
import { loadStories15M } from "@graft/ml/data";
import {
  decodeKey,
  inject,
  loadAdapter,
  type LoraLinear,
  mergeAndUnload,
  saveAdapter,
  unload,
  withoutAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { golden, here, near, shifted } from "./golden.ts";

forEachDevice("parity: stories15M's logits are PyTorch's, and its greedy text", async () => {
  const model = await LlamaForCausalLM.fromPretrained(await loadStories15M());
  await using file = await golden("stories15m.safetensors");
  for (const prompt of ["once", "scattered"]) {
    const ids = (await file.ints(`${prompt}.ids`)).unsqueeze(0); // [1, T]
    const logits = model.logits(model.forward(ids)).squeeze(0); // [T, V]
    const every = logits.slice(1, 0, undefined, 160); // [T, 200]
    near(`${prompt}: logits`, await every.data(), await file.floats(`${prompt}.logits`), 1e-4);
    near(
      `${prompt}: log-sum-exp`,
      await logits.logsumexp(1).data(),
      await file.floats(`${prompt}.logsumexp`),
      1e-4,
    );
    const last = await logits.slice(0, -1).data();
    const top = await (await file.ints(`${prompt}.top_ids`)).data();
    near(
      `${prompt}: top logits`,
      Array.from(top, (id) => last[id]),
      await file.floats(`${prompt}.top_logits`),
      1e-4,
    );
  }
  const all = [...await (await file.ints("greedy.ids")).data()];
  const prompt = [...await (await file.ints("once.ids")).data()];
  const options = { maxTokens: all.length - prompt.length, stopTokens: [] };
  const text = [...prompt];
  for await (const id of generate(model, prompt, options)) text.push(id);
  assertEquals(text, all);
});

forEachDevice("parity: a Llama's logits, loss and gradients are transformers'", async () => {
  const model = await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`);
  await using file = await golden("tiny_llama/golden.safetensors");
  const inputs = await file.ints("input_ids"), labels = await file.ints("labels");
  near(
    "logits",
    await model.logits(model.forward(inputs)).data(),
    await file.floats("logits"),
    1e-4,
  );
  for (const gradientCheckpointing of [false, true]) {
    model.train();
    model.model.gradientCheckpointing = gradientCheckpointing;
    const loss = model.loss({ inputs, targets: shifted(labels) });
    loss.backward();
    near("loss", await loss.data(), await file.floats("loss"), 1e-5);
    let count = 0;
    for (const [name, parameter] of model.namedParameters()) {
      near(name, await parameter.grad!.data(), await file.floats(`grad.${name}`), 1e-3);
      parameter.grad = null;
      count++;
    }
    assertEquals(count, file.keys.filter((key) => key.startsWith("grad.")).length);
  }
});

forEachDevice("parity: a PEFT adapter's logits and gradients are PEFT's", async () => {
  const model = await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`);
  await using file = await golden("peft_lora/golden.safetensors");
  const inputs = await file.ints("input_ids"), labels = await file.ints("labels");
  const logits = async (): Promise<ArrayLike<number>> =>
    await model.logits(model.forward(inputs)).data();
  await loadAdapter(model, `${here}peft_lora`, { trainable: true });
  near("logits", await logits(), await file.floats("logits"), 1e-4);
  near(
    "logits without",
    await withoutAdapters(model, logits),
    await file.floats("logits_base"),
    1e-4,
  );

  const loss = model.loss({ inputs, targets: shifted(labels) });
  loss.backward();
  near("loss", await loss.data(), await file.floats("loss"), 1e-5);
  const gradients = file.keys.filter((key) => key.startsWith("grad."));
  assertEquals(gradients.length, model.trainable().length);
  const modules = new Map(model.namedModules());
  for (const key of gradients) {
    const { path, part } = decodeKey(key.slice("grad.".length))!;
    const adapter = (modules.get(path) as LoraLinear).adapters.get("default")!;
    const layer = part === "lora_A.weight" ? adapter.lora_A : adapter.lora_B;
    near(key, await layer.weight.grad!.data(), await file.floats(key), 1e-3);
  }

  await mergeAndUnload(model);
  near("logits merged", await logits(), await file.floats("logits_merged"), 1e-4);
});

forEachDevice("parity: PEFT's files load and are saved as they were, byte for byte", async () => {
  const folder = await Deno.makeTempDir();
  const model = await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`);
  await loadAdapter(model, `${here}peft_lora`);
  await saveAdapter(model, folder);
  for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
    assertEquals(
      await Deno.readFile(`${folder}/${name}`),
      await Deno.readFile(`${here}peft_lora/${name}`),
      name,
    );
  }
  // A fresh adapter's configuration, of the same settings, is PEFT's too, defaults and all.
  unload(model);
  const text = await Deno.readTextFile(`${here}peft_lora/adapter_config.json`);
  const { target_modules } = JSON.parse(text); // a set in Python, in whatever order
  inject(model, {
    r: 4,
    target_modules,
    task_type: "CAUSAL_LM",
    base_model_name_or_path: "tiny_llama",
  });
  await saveAdapter(model, folder);
  assertEquals(await Deno.readTextFile(`${folder}/adapter_config.json`), text);
  // The base is saved as transformers has it.
  unload(model);
  await model.save(`${folder}/model.safetensors`);
  assertEquals(
    await Deno.readFile(`${folder}/model.safetensors`),
    await Deno.readFile(`${here}tiny_llama/model.safetensors`),
  );
  await Deno.remove(folder, { recursive: true });
});

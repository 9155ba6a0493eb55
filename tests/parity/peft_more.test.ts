/** LoRA's variants against PEFT: see README.md here. */

import { assert, assertEquals } from "@std/assert";
import { type CausalLM, loadModel } from "@graft/ml/nn";
import {
  adapterState,
  loadAdapter,
  merge,
  mergeAndUnload,
  saveAdapter,
  unmerge,
  withoutAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { golden, here, near, shifted } from "./golden.ts";

const BASES: Readonly<Record<string, string>> = {
  rslora: "tiny_llama",
  dora: "tiny_llama",
  saved: "tiny_llama",
  embedding: "tiny_llama",
  embedding_dora: "tiny_llama",
  pissa: "tiny_llama",
  olora: "tiny_llama",
  bias: "families/qwen2",
  lora_bias: "families/qwen2",
  conv1d: "families/gpt2",
  conv1d_dora: "families/gpt2",
};

forEachDevice("parity: PEFT's variants of LoRA, logits, gradients, merged, files", async (_, t) => {
  for (const [name, base] of Object.entries(BASES)) {
    await t.step(name, async () => {
      const folder = `${here}peft_more/${name}`;
      const model = await loadModel(`${here}${base}`) as CausalLM;
      await using inputs = await golden(`${base}/golden.safetensors`);
      await using file = await golden(`peft_more/${name}/golden.safetensors`);
      const ids = await inputs.tensor("input_ids"), labels = await inputs.tensor("labels");
      const logits = async (): Promise<Float32Array> =>
        await model.logits(model.forward(ids)).data() as Float32Array;
      const before = await logits();
      await loadAdapter(model, folder, { trainable: true });
      const want = await file.floats("logits");
      near("logits", await logits(), want, 1e-4);
      assertEquals(await withoutAdapters(model, logits), before);

      const loss = model.loss({ inputs: ids, targets: shifted(labels) });
      loss.backward();
      near("loss", await loss.data(), await file.floats("loss"), 1e-5);
      const state = adapterState(model);
      const gradients = file.keys.filter((key) => key.startsWith("grad."));
      assertEquals(gradients.length, state.size);
      assertEquals(model.trainable().length, state.size);
      for (const key of gradients) {
        const { grad } = state.get(key.slice("grad.".length))!;
        const values = await file.floats(key);
        const got = grad!.size > 2000 ? grad!.sum(-1) : grad!;
        near(key, await got.data(), values, 1e-3);
      }

      const out = await Deno.makeTempDir();
      await saveAdapter(model, out);
      for (const part of ["adapter_config.json", "adapter_model.safetensors"]) {
        assertEquals(
          await Deno.readFile(`${out}/${part}`),
          await Deno.readFile(`${folder}/${part}`),
          part,
        );
      }
      await Deno.remove(out, { recursive: true });

      await merge(model);
      near("merged", await logits(), want, 1e-5);
      assertEquals(await withoutAdapters(model, logits), before);
      unmerge(model);
      near("unmerged", await logits(), want, 1e-4);
      await mergeAndUnload(model);
      near("merged and unloaded", await logits(), await file.floats("logits_merged"), 1e-4);
      assert(model.parameters().length > 0 && adapterState(model).size === 0);
    });
  }
});

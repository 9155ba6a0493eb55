/** What adapting costs in memory beyond the weights: LoRA against full fine-tuning, same batch. */

import { assert } from "@std/assert";
import { init } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";

/** Bytes on the device beyond the base weights after two steps, and the planner's temporaries. */
async function beyondWeights(method: "lora" | "full"): Promise<{ all: number; planned: number }> {
  const device = await init({ device: "cpu" });
  const model = new LlamaForCausalLM({
    vocab_size: 8000,
    hidden_size: 288,
    intermediate_size: 768,
    num_hidden_layers: 3,
    num_attention_heads: 6,
    tie_word_embeddings: true,
  });
  const weights = model.parameters().reduce((sum, p) => sum + 4 * p.size, 0);
  if (method === "lora") {
    inject(model, { r: 8, target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"] });
  }
  const optimizer = new AdamW(model.trainable());
  const shape = [2, 128] as const;
  const ids = Int32Array.from({ length: 256 }, (_, i) => i * 7 % 8000);
  for (let step = 0; step < 2; step++) {
    model.loss({ inputs: ids, targets: ids, shape }).backward();
    await optimizer.step();
    optimizer.zeroGrad();
  }
  const all = device.counters.bytes - weights;
  const planned = device.lastReport!.temporaryBytes;
  await device.close();
  return { all, planned };
}

Deno.test("memory: LoRA needs at most a third of what full fine-tuning does", async () => {
  const lora = await beyondWeights("lora");
  const full = await beyondWeights("full");
  const megabytes = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
  const text = `LoRA ${megabytes(lora.all)} MiB, full ${megabytes(full.all)} MiB`;
  assert(lora.all <= full.all / 3, text);
  assert(lora.planned < full.planned, "the planner reports the same");
});

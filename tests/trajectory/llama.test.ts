/** A loss curve is the same whatever runs it: cpu or webgpu, with replay or without, broken off or not. */

import { assert, assertEquals } from "@std/assert";
import { defaultGenerator, type Device, init, manualSeed } from "@graft/ml";
import { DataLoader, pack } from "@graft/ml/data";
import { LlamaForCausalLM } from "@graft/ml/nn";
import {
  AdamW,
  clipGradNorm,
  cosineSchedule,
  loadCheckpoint,
  saveCheckpoint,
} from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";

const STEPS = 30;

/** A run, and how to take steps in it. */
interface Run {
  steps(count: number): Promise<number[]>;
  save(path: string): Promise<void>;
  load(path: string): Promise<void>;
  close(): Promise<void>;
}

/** A tiny Llama, LoRA with dropout on attention and the rest frozen, or all of it trained. */
function start(device: Device, method: "lora" | "full"): Run {
  manualSeed(5);
  const model = new LlamaForCausalLM({
    vocab_size: 61,
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    initializer_range: 0.2,
    tie_word_embeddings: true,
  });
  if (method === "lora") {
    inject(model, { r: 4, lora_alpha: 16, lora_dropout: 0.1, target_modules: "all-linear" });
  }
  const parameters = new Map(model.namedParameters().filter(([, p]) => p.requiresGrad));
  const optimizer = new AdamW(model.trainable(), { lr: 0.01 });
  const schedule = cosineSchedule(STEPS, { warmup: 3 });
  // A text with something to learn: each token depends on the two before it.
  const ids = new Int32Array(2000);
  for (let i = 2; i < ids.length; i++) ids[i] = (ids[i - 1] * 3 + ids[i - 2] + i % 2) % 61;
  const loader = new DataLoader(pack([{ ids, promptLength: 1 }], 16), { batchSize: 4, seed: 9 });
  let step = 0;
  return {
    async steps(count: number): Promise<number[]> {
      const losses: number[] = [];
      for (const batch of loader) {
        const loss = model.loss(batch);
        loss.backward();
        clipGradNorm(optimizer.parameters, 1);
        optimizer.lr = 0.01 * schedule(step++);
        await optimizer.step();
        optimizer.zeroGrad();
        losses.push(await loss.item());
        if (losses.length === count) break;
      }
      return losses;
    },
    save: (path) =>
      saveCheckpoint(path, { parameters, optimizer }, {
        step,
        loader: loader.state(),
        generator: defaultGenerator().state(),
      }),
    async load(path): Promise<void> {
      const at = await loadCheckpoint(path, { parameters, optimizer }) as {
        step: number;
        loader: ReturnType<DataLoader["state"]>;
        generator: { seed: number; counter: number };
      };
      step = at.step;
      loader.load(at.loader);
      defaultGenerator().load(at.generator);
    },
    close: () => device.close(),
  };
}

for (const method of ["lora", "full"] as const) {
  forEachDevice(`trajectory: ${method} on every device as on cpu`, async (device) => {
    const run = start(device, method);
    const losses = await run.steps(2);
    const { buffers, pipelines, bindings } = device.counters;
    losses.push(...await run.steps(STEPS - 2));
    const { counters } = device;
    assertEquals(
      [counters.buffers, counters.pipelines, counters.bindings],
      [buffers, pipelines, bindings],
      "from step 3 on, nothing new is made on the device",
    );
    assert(losses[STEPS - 1] < losses[0] - 0.3, `it learns: ${losses}`);
    const cpu = await init({ device: "cpu" });
    const expected = await start(cpu, method).steps(STEPS);
    await cpu.close();
    losses.forEach((loss, i) => {
      assert(Math.abs(loss - expected[i]) < 1e-3, `step ${i + 1}: ${loss}, on cpu ${expected[i]}`);
    });
  });

  forEachDevice(`trajectory: ${method} is the same to the bit without replay`, async (device) => {
    const replayed = await start(device, method).steps(8);
    device.replay = false;
    assertEquals(await start(device, method).steps(8), replayed);
  });

  forEachDevice(`trajectory: ${method} resumed is the unbroken run to the bit`, async (device) => {
    const path = `${await Deno.makeTempDir()}/state.safetensors`;
    const unbroken = await start(device, method).steps(12);
    const first = start(device, method);
    const losses = await first.steps(5);
    await first.save(path);
    const second = start(device, method);
    await second.load(path);
    assertEquals([...losses, ...await second.steps(7)], unbroken);
    await Deno.remove(path);
  });
}

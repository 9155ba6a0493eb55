/**
 * What a rank of a data-parallel test does: the training loop of the README on a tiny Llama. The ranks
 * may be threads, processes, or all in one thread.
 */

import { type Device, init, manualSeed, type Tensor, useDevice, type Variable } from "@graft/ml";
import { type Batch, DataLoader, type Dataset, IGNORED_TARGET } from "@graft/ml/data";
import {
  DistributedDataParallel,
  initProcessGroup,
  type ParallelOptions,
  type ProcessGroup,
  reduceMetrics,
} from "@graft/ml/dist";
import { LlamaForCausalLM } from "@graft/ml/nn";
import { AdamW, clipGradNorm, SGD } from "@graft/ml/optim";
import { inject, injectPrompt } from "@graft/ml/peft";

type Method = "lora" | "prefix" | "full";

/** What is trained, and how. */
export interface Job {
  readonly method: Method;
  readonly optimizer: "sgd" | "adamw";
  readonly steps: number;
  /** Rows of a step, all ranks together. */
  readonly rows: number;
  /** Micro-batches that a step adds up. */
  readonly accumulate?: number;
  readonly checkpointing?: boolean;
}

/** What comes of it. */
export interface Outcome {
  /** Of each step, over all ranks' targets. */
  readonly losses: readonly number[];
  /** All trained parameters one after another. */
  readonly parameters: Float32Array;
  /** The gradients of the first step, before clipping. */
  readonly gradients: Float32Array;
}

/** A tiny Llama, with or without LoRA. Other seeds make other weights of the same shapes. */
export function tinyLlama(method: Method, seed = 5): LlamaForCausalLM {
  manualSeed(seed);
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
  if (method === "lora") inject(model, { r: 4, lora_alpha: 16, target_modules: "all-linear" });
  return model;
}

/** A text with something to learn, of which each window leaves out another share of its targets. */
export const text: Dataset = {
  length: 96,
  sequenceLength: 16,
  window(index: number) {
    const ids = new Int32Array(17);
    [ids[0], ids[1]] = [index % 61, (index * 7) % 61];
    for (let i = 2; i < 17; i++) ids[i] = (ids[i - 1] * 3 + ids[i - 2] + i % 2) % 61;
    const targets = ids.slice(1).map((id, i) => i < (index * 5) % 13 ? IGNORED_TARGET : id);
    return { inputs: ids.slice(0, 16), targets };
  },
};

/** Trains as one rank of `group`; each of several in one thread has its own `device`. */
export async function trainRank(
  group: ProcessGroup,
  device: Device,
  job: Job,
  options: ParallelOptions = {},
): Promise<Outcome> {
  useDevice(device);
  // Rank 0's weights are to win.
  const model = tinyLlama(job.method, 5 + group.rank);
  if (job.method === "prefix") {
    await injectPrompt(model, { peft_type: "PREFIX_TUNING", num_virtual_tokens: 3 }, {
      start: "zero",
    });
    useDevice(device);
  }
  if (job.checkpointing) model.model.gradientCheckpointing = true;
  using ddp = new DistributedDataParallel(model, group, { bucketBytes: 16384, ...options });
  const trained = model.trainable();
  const optimizer = job.optimizer === "sgd"
    ? new SGD(trained, { lr: 0.05, momentum: 0.9 })
    : new AdamW(trained, { lr: 0.01 });
  const accumulate = job.accumulate ?? 1;
  const loader = new DataLoader(text, { batchSize: job.rows / accumulate, seed: 9, shard: group });
  const batches = loader[Symbol.iterator]();
  const losses: number[] = [];
  let gradients = new Float32Array(0);
  for (let step = 0; step < job.steps; step++) {
    useDevice(device);
    const micro: { loss: Tensor; count: number }[] = [];
    while (micro.length < accumulate) {
      const batch: Batch = batches.next().value;
      const backward = (): Tensor => {
        const loss = ddp.loss(batch);
        loss.div(accumulate).backward();
        return loss;
      };
      const loss = micro.length < accumulate - 1 ? ddp.noSync(backward) : backward();
      micro.push({ loss, count: batch.targetCount });
    }
    if (step === 0) gradients = await joined(trained.map((p) => p.grad!));
    useDevice(device);
    clipGradNorm(trained, 1);
    await optimizer.step();
    optimizer.zeroGrad();
    for (const { loss, count } of micro) {
      const mean = await reduceMetrics(group, { loss: await loss.item() }, count);
      losses.push(mean.loss);
    }
  }
  return { losses, parameters: await joined(trained), gradients };
}

async function joined(variables: readonly Variable[]): Promise<Float32Array<ArrayBuffer>> {
  const parts = [];
  for (const variable of variables) parts.push(...await variable.data() as Float32Array);
  return Float32Array.from(parts);
}

/**
 * A rank in a thread or a process of its own. With a `folder` it leaves there what it came to, and its
 * place on its machine.
 */
export async function main(
  kind: "cpu" | "webgpu",
  job: Job,
  folder?: string,
): Promise<Outcome> {
  await using group = await initProcessGroup();
  const device = await init({ device: kind, threads: 1 });
  try {
    const outcome = await trainRank(group, device, job);
    if (folder !== undefined) {
      const { losses, parameters, gradients } = outcome;
      const text = JSON.stringify({
        losses,
        parameters: [...parameters],
        gradients: [...gradients],
      });
      await Deno.writeTextFile(`${folder}/${group.rank}.json`, text);
      const place = `${group.localRank} of ${group.localSize}`;
      await Deno.writeTextFile(`${folder}/${group.rank}.place`, place);
    }
    return outcome;
  } finally {
    await device.close();
  }
}

if (import.meta.main) await main("cpu", JSON.parse(Deno.args[0]), Deno.args[1]);

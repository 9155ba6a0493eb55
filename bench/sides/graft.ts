/**
 * graft's side.
 *
 *     deno run -A bench/sides/graft.ts cpu|webgpu THREADS
 *
 * @module
 */

import {
  attention,
  crossEntropy,
  type Device,
  embedding,
  grad,
  init,
  layerNorm,
  linearCrossEntropy,
  rmsNorm,
  type Tensor,
  tensor,
  Variable,
  zeros,
} from "@graft/ml";
import { loadStories15M } from "@graft/ml/data";
import { generate, LlamaForCausalLM, Parameter } from "@graft/ml/nn";
import { AdamW } from "@graft/ml/optim";
import { inject } from "@graft/ml/peft";
import type { Case } from "../cases.ts";
import { median } from "../report.ts";
import { graftGpt } from "../small_gpt/graft.ts";
import { GPTS, SPEC } from "../small_gpt/spec.ts";
import { integers, numbers, power, type Side, type Work } from "./work.ts";
import { serve } from "./serve.ts";

/** Opens graft on the cpu or on WebGPU. */
async function graftSide(device: "cpu" | "webgpu", threads: number): Promise<Side> {
  const opened = await init({ device, threads });
  return {
    name: opened.name === "webgpu"
      ? "graft, WebGPU"
      : `graft, cpu${opened.description.includes("pairs") ? ", V8's vectors in pairs" : ""}`,
    open: async (work) => await open(work, opened),
  };
}

/** A variable of these numbers. */
function variable(shape: number[], seed: number, requiresGrad = false): Variable {
  const data = numbers(shape.reduce((a, b) => a * b), seed);
  return new Variable(tensor(data, { shape }), { requiresGrad });
}

/** Work whose results go into variables, so that a flush computes them and nothing is read. */
async function stored(
  device: Device,
  inputs: readonly Variable[],
  compute: () => readonly Tensor[],
): Promise<Work> {
  await device.flush();
  const outputs = compute().map((t) => new Variable(zeros([...t.shape])));
  const disposable = [...inputs, ...outputs];
  return {
    run: async () => {
      compute().forEach((t, i) => outputs[i].assign(t as Tensor<"f32">));
      await device.flush();
    },
    sync: () => synchronise(device, outputs[0]),
    value: async () => {
      const all = [];
      for (const out of outputs) all.push(...power(await out.data() as Float32Array));
      return all;
    },
    close: () => disposable.forEach((v) => v.dispose()),
  };
}

/** Waits for the device by reading one number. */
async function synchronise(device: Device, of: Variable): Promise<void> {
  if (device.name === "webgpu") await of.flatten().slice(0, 0, 1).data();
}

async function open(work: Case, device: Device): Promise<Work | null> {
  const { sizes } = work;
  switch (work.kind) {
    case "matmul": {
      const { batch, m, n, k, turned } = sizes;
      const lead = batch > 1 ? [batch] : [];
      const a = variable([...lead, m, k], 1);
      const b = variable([...lead, ...(turned ? [n, k] : [k, n])], 2);
      return await stored(device, [a, b], () => [a.matmul(turned ? b.transpose() : b)]);
    }
    case "attention": {
      const { b, h, t, d, backward } = sizes;
      const [q, k, v] = [1, 2, 3].map((seed) => variable([b, h, t, d], seed, backward === 1));
      const g = variable([b, h, t, d], 4);
      return await stored(device, [q, k, v, g], () => {
        const y = attention(q, k, v, { causal: true });
        return backward ? [y, ...grad(y, [q, k, v], { seed: g }) as Tensor[]] : [y];
      });
    }
    case "layer norm":
    case "RMS norm": {
      const { rows, size } = sizes;
      const x = variable([rows, size], 1, true);
      const [weight, bias] = [variable([size], 2, true), variable([size], 3, true)];
      const g = variable([rows, size], 4);
      const affine = work.kind === "layer norm" ? [weight, bias] : [weight];
      return await stored(device, [x, weight, bias, g], () => {
        const y = work.kind === "layer norm"
          ? layerNorm(x, weight, bias, SPEC.epsilon)
          : rmsNorm(x, weight, SPEC.epsilon);
        return [y, ...grad(y, [x, ...affine], { seed: g }) as Tensor[]];
      });
    }
    case "cross-entropy": {
      const { rows, classes } = sizes;
      const x = variable([rows, classes], 1, true);
      const targets = new Variable(tensor(integers(rows, 2, classes)));
      return await stored(device, [x, targets], () => {
        const loss = crossEntropy(x, targets);
        return [loss, ...grad(loss, [x]) as Tensor[]];
      });
    }
    case "head": {
      const { rows, size, classes } = sizes;
      const x = variable([rows, size], 1, true);
      const weight = variable([classes, size], 2);
      const targets = new Variable(tensor(integers(rows, 3, classes)));
      return await stored(device, [x, weight, targets], () => {
        const loss = linearCrossEntropy(x, weight, targets);
        return [loss, ...grad(loss, [x]) as Tensor[]];
      });
    }
    case "embedding": {
      const { rows, size, vocabulary } = sizes;
      const weight = variable([vocabulary, size], 1, true);
      const ids = new Variable(tensor(integers(rows, 2, vocabulary)));
      const g = variable([rows, size], 3);
      return await stored(device, [weight, ids, g], () => {
        const y = embedding(weight, ids);
        return [y, ...grad(y.mul(g).sum(), [weight]) as Tensor[]];
      });
    }
    case "AdamW":
      return await adamW(work, device);
    case "step": {
      const { step } = await graftGpt(GPTS[work.gpt!], work.method!);
      return training(device, step);
    }
    default:
      return await stories(work, device);
  }
}

/** Training steps; their losses are the value. */
function training(device: Device, step: (index: number) => Promise<number>): Work {
  const losses: number[] = [];
  const clock = new HostClock(device);
  return {
    run: async () => {
      const loss = await clock.time(() => step(losses.length));
      losses.push(loss);
    },
    value: () => Promise.resolve(losses),
    host: () => median(clock.steps.slice(clock.steps.length >> 1)),
  };
}

/**
 * Tells what the host does in a step apart from what the device does. The cpu backend computes before
 * `run` returns: the host's share is the rest of the step. WebGPU is at work from then on: the host's
 * share is what comes before.
 */
class HostClock {
  /** Milliseconds, a step each. */
  readonly steps: number[] = [];
  readonly #enqueues: boolean;
  #began = 0;
  /** Within the runs of this step; until the last of them was submitted. */
  #within = 0;
  #submitted = 0;

  constructor(device: Device) {
    const backend = device.backend!;
    this.#enqueues = backend.enqueues;
    const make = backend.program.bind(backend);
    backend.program = (steps, words) => {
      const program = make(steps, words);
      return {
        dispose: () => program.dispose(),
        run: (run) => {
          const start = performance.now();
          const results = program.run(run);
          const end = performance.now();
          this.#within += end - start;
          this.#submitted = end;
          return results;
        },
      };
    };
  }

  async time<T>(step: () => Promise<T>): Promise<T> {
    this.#within = 0;
    this.#began = performance.now();
    const result = await step();
    const whole = performance.now() - this.#began;
    this.steps.push(this.#enqueues ? this.#submitted - this.#began : whole - this.#within);
    return result;
  }
}

async function adamW({ sizes: { count, size } }: Case, device: Device): Promise<Work> {
  const parameters: Parameter[] = [];
  for (let i = 0; i < count; i++) {
    for (const shape of [[size, size], [size]]) {
      const elements = shape.reduce((a, b) => a * b);
      const parameter = new Parameter(tensor(numbers(elements, 2 * i), { shape }));
      parameter.grad = new Variable(tensor(numbers(elements, 2 * i + 1), { shape }));
      parameters.push(parameter);
    }
  }
  await device.flush();
  const { lr, betas, adamEpsilon: eps } = SPEC;
  const optimizer = new AdamW(parameters, { lr, betas, eps, weightDecay: 0 });
  let steps = 0;
  let early: number[] = [];
  return {
    run: async () => {
      await optimizer.step();
      if (++steps === 1) early = power(await parameters[0].data() as Float32Array);
    },
    sync: () => synchronise(device, parameters[0]),
    value: () => Promise.resolve(early),
  };
}

/** Everything that takes stories15M. */
async function stories(work: Case, device: Device): Promise<Work | null> {
  const folder = await loadStories15M();
  if (work.kind === "load") {
    let sum: number[] = [];
    return {
      run: async () => {
        const model = await LlamaForCausalLM.fromPretrained(folder);
        sum = power(await model.model.norm.weight.data() as Float32Array);
        model.parameters().forEach((p) => p.dispose());
      },
      value: () => Promise.resolve(sum),
    };
  }
  const model = await LlamaForCausalLM.fromPretrained(folder);
  const { vocab_size: vocabulary } = model.config;
  if (work.kind === "stories") {
    const { batch, sequence } = work.sizes;
    inject(model, {
      r: SPEC.rank,
      lora_alpha: SPEC.scale * SPEC.rank,
      target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"],
    });
    for (const [path, p] of model.namedParameters()) {
      if (!path.includes("lora_A")) continue;
      await p.write(numbers(p.size, 5, 0.05));
    }
    const { lr, betas, adamEpsilon: eps, weightDecay } = SPEC;
    const optimizer = new AdamW(model.trainable(), { lr, betas, eps, weightDecay });
    const shape = [batch, sequence];
    return training(device, async (index) => {
      const ids = integers(batch * (sequence + 1), 10 + index, vocabulary);
      const targets = Int32Array.from(ids.subarray(1, batch * sequence + 1));
      const loss = model.loss({
        inputs: tensor(ids.slice(0, batch * sequence), { shape }),
        targets: tensor(targets, { shape }),
      });
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      return await loss.item();
    });
  }
  if (work.kind !== "prompt" && work.kind !== "decode") return null;
  const { prompt, count } = work.sizes;
  const ids = integers(prompt, 6, vocabulary);
  let tokens: number[] = [];
  return {
    run: async () => {
      tokens = [];
      const options = { maxTokens: count, temperature: 0, stopTokens: [] };
      for await (const token of generate(model, ids, options)) tokens.push(token);
    },
    value: () => Promise.resolve(tokens),
  };
}

if (import.meta.main) {
  const [device, threads] = Deno.args;
  await serve(await graftSide(device as "cpu" | "webgpu", Number(threads)));
}

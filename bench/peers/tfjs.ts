/**
 * TensorFlow.js's side.
 *
 *     deno run -A --config bench/peers/deno.json bench/peers/tfjs.ts wasm|webgpu THREADS
 *
 * @module
 */

import { createRequire } from "node:module";
import { dirname } from "node:path";
import * as tf from "@tensorflow/tfjs";
import type { Case } from "../cases.ts";
import { GPTS, SPEC } from "../small_gpt/spec.ts";
import { causalAttention, layerNorm, tfjsGpt } from "./tfjs_gpt.ts";
import { integers, numbers, power, type Side, type Work } from "../sides/work.ts";
import { serve } from "../sides/serve.ts";

/** Opens TensorFlow.js on wasm, which in Deno has one thread whatever it is told, or on WebGPU. */
async function tfjsSide(device: "wasm" | "webgpu", threads: number): Promise<Side> {
  let note = "";
  if (device === "wasm") {
    const wasm = await import("@tensorflow/tfjs-backend-wasm");
    const path = createRequire(import.meta.url).resolve("@tensorflow/tfjs-backend-wasm");
    wasm.setWasmPaths(`${dirname(path)}/`);
    wasm.setThreadsCount(threads);
    if (!await tf.env().getAsync("WASM_HAS_MULTITHREAD_SUPPORT")) note = " (1 thread)";
  } else {
    await import("@tensorflow/tfjs-backend-webgpu");
  }
  if (!await tf.setBackend(device)) throw new Error(`tfjs: the backend ${device} does not start`);
  await tf.ready();
  return {
    name: `tfjs 4.22.0, ${device === "wasm" ? "wasm" : "WebGPU"}${note}`,
    open: (work) => Promise.resolve(open(work)),
  };
}

function array(shape: number[], seed: number): tf.Tensor {
  return tf.tensor(numbers(shape.reduce((a, b) => a * b), seed), shape);
}

/** Work whose last results are held. */
function held(inputs: readonly tf.Tensor[], compute: () => tf.Tensor[]): Work {
  let outputs: tf.Tensor[] = [];
  return {
    run: () => {
      tf.dispose(outputs);
      outputs = tf.tidy(compute);
    },
    // The wasm backend has finished when a call returns; a GPU has when something is read.
    sync: async () => void await outputs[0].flatten().slice(0, 1).data(),
    value: async () => {
      const all = [];
      for (const x of outputs) all.push(...power(await x.data() as Float32Array));
      return all;
    },
    close: () => tf.dispose([...inputs, ...outputs]),
  };
}

/** A function's value, and its gradients to `trained` where `g` comes in. */
function withGradients(
  trained: tf.Tensor[],
  g: tf.Tensor | undefined,
  forward: (...inputs: tf.Tensor[]) => tf.Tensor,
  rest: tf.Tensor[] = [],
): Work {
  const both = tf.valueAndGrads((...inputs: tf.Tensor[]) => forward(...inputs));
  return held([...trained, ...(g ? [g] : []), ...rest], () => {
    const { value, grads } = both(trained, g);
    return [value, ...grads];
  });
}

function open(work: Case): Work | null {
  const { sizes } = work;
  switch (work.kind) {
    case "matmul": {
      const { batch, m, n, k, turned } = sizes;
      const lead = batch > 1 ? [batch] : [];
      const a = array([...lead, m, k], 1);
      const b = array([...lead, ...(turned ? [n, k] : [k, n])], 2);
      return held([a, b], () => [tf.matMul(a, b, false, turned === 1)]);
    }
    case "attention": {
      const { b, h, t, d, backward } = sizes;
      const [q, k, v, g] = [1, 2, 3, 4].map((seed) => array([b, h, t, d], seed));
      const forward = causalAttention(t);
      if (backward) return withGradients([q, k, v], g, forward);
      return held([q, k, v], () => [forward(q, k, v)]);
    }
    case "layer norm":
    case "RMS norm": {
      const { rows, size } = sizes;
      const [x, weight, bias, g] = [[rows, size], [size], [size], [rows, size]]
        .map((shape, i) => array(shape, i + 1));
      if (work.kind === "layer norm") return withGradients([x, weight, bias], g, layerNorm);
      const rms = (x: tf.Tensor, weight: tf.Tensor): tf.Tensor =>
        x.mul(x.square().mean(-1, true).add(SPEC.epsilon).rsqrt()).mul(weight);
      return withGradients([x, weight], g, rms);
    }
    case "cross-entropy": {
      const { rows, classes } = sizes;
      const targets = tf.tensor1d(integers(rows, 2, classes), "int32");
      return withGradients([array([rows, classes], 1)], undefined, (x) => {
        return tf.losses.softmaxCrossEntropy(tf.oneHot(targets, classes), x);
      }, [targets]);
    }
    case "head": {
      const { rows, size, classes } = sizes;
      const weight = array([classes, size], 2);
      const targets = tf.tensor1d(integers(rows, 3, classes), "int32");
      return withGradients([array([rows, size], 1)], undefined, (x) => {
        const logits = tf.matMul(x as tf.Tensor2D, weight as tf.Tensor2D, false, true);
        return tf.losses.softmaxCrossEntropy(tf.oneHot(targets, classes), logits);
      }, [weight, targets]);
    }
    case "embedding": {
      const { rows, size, vocabulary } = sizes;
      const ids = tf.tensor1d(integers(rows, 2, vocabulary), "int32");
      const g = array([rows, size], 3);
      return withGradients([array([vocabulary, size], 1)], g, (w) => tf.gather(w, ids), [ids]);
    }
    case "AdamW":
      return adam(work);
    case "step": {
      const { step } = tfjsGpt(GPTS[work.gpt!], work.method!);
      const losses: number[] = [];
      return {
        run: async () => void losses.push(await step(losses.length)),
        value: () => Promise.resolve(losses),
      };
    }
    default:
      return null;
  }
}

/** Its Adam; without weight decay AdamW is the same. */
function adam({ sizes: { count, size } }: Case): Work {
  const { lr, betas, adamEpsilon } = SPEC;
  const optimizer = tf.train.adam(lr, ...betas, adamEpsilon);
  const variables: tf.Variable[] = [];
  const gradients: { name: string; tensor: tf.Tensor }[] = [];
  for (let i = 0; i < count; i++) {
    for (const shape of [[size, size], [size]]) {
      const name = `p${variables.length}`;
      variables.push(tf.variable(array(shape, 2 * i), true, name));
      gradients.push({ name, tensor: array(shape, 2 * i + 1) });
    }
  }
  let early: number[] | null = null;
  return {
    run: async () => {
      optimizer.applyGradients(gradients);
      early ??= power(await variables[0].data() as Float32Array);
    },
    sync: async () => void await variables[0].flatten().slice(0, 1).data(),
    value: () => Promise.resolve(early!),
    close: () => {
      optimizer.dispose();
      tf.dispose([...variables, ...gradients.map((g) => g.tensor)]);
    },
  };
}

if (import.meta.main) {
  const [device, threads] = Deno.args;
  await serve(await tfjsSide(device as "wasm" | "webgpu", Number(threads)));
}

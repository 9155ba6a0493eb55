/**
 * jax-js's side. Each piece of work is one `jit`, as its documentation advises.
 *
 *     deno run -A --config bench/peers/deno.json bench/peers/jax_js.ts wasm|webgpu
 *
 * @module
 */

import {
  blockUntilReady,
  defaultDevice,
  init,
  jit,
  nn,
  numpy as np,
  valueAndGrad,
} from "@jax-js/jax";
import type { Case } from "../cases.ts";
import { jaxJsGpt, oneHot } from "./jax_js_gpt.ts";
import { jaxJsLlamaGeneration } from "./jax_js_generation.ts";
import { jaxJsLora } from "./jax_js_lora.ts";
import { GPTS, SPEC } from "../small_gpt/spec.ts";
import { integers, numbers, power, type Side, type Work } from "../sides/work.ts";
import { serve } from "../sides/serve.ts";

/** Opens jax-js on wasm or WebGPU. Its wasm backend takes a thread for each core. */
async function jaxJsSide(device: "wasm" | "webgpu"): Promise<Side> {
  const found = await init(device);
  if (!found.includes(device)) throw new Error(`jax-js finds no ${device} here`);
  defaultDevice(device);
  return {
    name: `jax-js 0.1.25, ${device === "wasm" ? "wasm" : "WebGPU"}`,
    open: async (work, data) => await open(work, data),
  };
}

type Arrays = np.Array[];

function array(shape: number[], seed: number): np.Array {
  return np.array(numbers(shape.reduce((a, b) => a * b), seed)).reshape(shape);
}

/** Work of a compiled function, whose arguments stay. */
function compiled(inputs: Arrays, compute: (...inputs: Arrays) => Arrays): Work {
  const call = jit(compute);
  let outputs: Arrays = [];
  return {
    run: async () => {
      outputs.forEach((x) => x.dispose());
      outputs = call(...inputs.map((x) => x.ref)) as Arrays;
      await blockUntilReady(outputs);
    },
    value: async () => {
      const all = [];
      for (const x of outputs) all.push(...power(await x.ref.data() as Float32Array));
      return all;
    },
    close: () => [...inputs, ...outputs].forEach((x) => x.dispose()),
  };
}

/** `forward(...trained, ...rest)`, and the gradients of its product with `g` to `trained`. */
function withGradients(
  trained: Arrays,
  rest: Arrays,
  g: np.Array,
  forward: (...inputs: Arrays) => np.Array,
): Work {
  return compiled([...trained, ...rest, g], (...inputs) => {
    const g = inputs.pop()!;
    const argnums = trained.map((_, i) => i);
    const weighed = (...inputs: Arrays): [np.Array, np.Array] => {
      const y = forward(...inputs);
      return [y.ref.mul(g).sum(), y];
    };
    const [[value, y], gradients] = valueAndGrad(weighed, { argnums, hasAux: true })(...inputs) as [
      [np.Array, np.Array],
      Arrays,
    ];
    value.dispose();
    return [y, ...gradients];
  });
}

async function open(work: Case, data: string | null): Promise<Work | null> {
  const { sizes } = work;
  switch (work.kind) {
    case "matmul": {
      const { batch, m, n, k, turned } = sizes;
      const lead = batch > 1 ? [batch] : [];
      const a = array([...lead, m, k], 1);
      const b = array([...lead, ...(turned ? [n, k] : [k, n])], 2);
      return compiled([a, b], (a, b) => [np.matmul(a, turned ? b.transpose() : b)]);
    }
    case "attention": {
      const { b, h, t, d, backward } = sizes;
      // Its attention takes [B, T, H, D].
      const [q, k, v, g] = [1, 2, 3, 4].map((seed) => array([b, h, t, d], seed));
      const forward = (q: np.Array, k: np.Array, v: np.Array): np.Array =>
        nn.dotProductAttention(
          q.transpose([0, 2, 1, 3]),
          k.transpose([0, 2, 1, 3]),
          v.transpose([0, 2, 1, 3]),
          { isCausal: true },
        ).transpose([0, 2, 1, 3]);
      if (backward) return withGradients([q, k, v], [], g, forward);
      return compiled([q, k, v], (q, k, v) => [forward(q, k, v)]);
    }
    case "layer norm":
    case "RMS norm": {
      const { rows, size } = sizes;
      const [x, weight, bias, g] = [[rows, size], [size], [size], [rows, size]]
        .map((shape, i) => array(shape, i + 1));
      const { epsilon } = SPEC;
      return work.kind === "layer norm"
        ? withGradients(
          [x, weight, bias],
          [],
          g,
          (x, weight, bias) => nn.standardize(x, -1, { epsilon }).mul(weight).add(bias),
        )
        : withGradients([x, weight], [], g, (x, weight) => {
          const mean = np.mean(np.square(x.ref), -1, { keepdims: true });
          return x.div(np.sqrt(mean.add(epsilon))).mul(weight);
        });
    }
    case "cross-entropy": {
      const { rows, classes } = sizes;
      return withLoss(
        [array([rows, classes], 1), np.array(integers(rows, 2, classes))],
        (x, targets) => nllOf(x, targets, rows, classes),
      );
    }
    case "head": {
      const { rows, size, classes } = sizes;
      return withLoss(
        [array([rows, size], 1), array([classes, size], 2), np.array(integers(rows, 3, classes))],
        (x, weight, targets) => nllOf(np.matmul(x, weight.transpose()), targets, rows, classes),
      );
    }
    case "AdamW":
      return adamW(work);
    case "step":
      return training(jaxJsGpt(GPTS[work.gpt!], work.method!).step);
    case "stories":
      return training(await jaxJsLora(data!, sizes.batch, sizes.sequence));
    case "prompt":
    case "decode": {
      const prompt = integers(sizes.prompt, 6, 32000);
      const { generate, dispose } = await jaxJsLlamaGeneration(data!, prompt, sizes.count);
      let tokens: number[] = [];
      return {
        run: async () => void (tokens = await generate()),
        value: () => Promise.resolve(tokens),
        close: dispose,
      };
    }
    // The gradient of a lookup is a scatter, which its `jit` refuses; loading is another package.
    default:
      return null;
  }
}

/** Training steps; their losses are the value. */
function training(step: (index: number) => Promise<number>): Work {
  const losses: number[] = [];
  return {
    run: async () => void losses.push(await step(losses.length)),
    value: () => Promise.resolve(losses),
  };
}

/** A loss, and its gradient to the first argument. */
function withLoss(inputs: Arrays, loss: (...inputs: Arrays) => np.Array): Work {
  return compiled(inputs, (...inputs) => {
    const [value, gradient] = valueAndGrad(loss)(...inputs);
    return [value, gradient as np.Array];
  });
}

function nllOf(logits: np.Array, targets: np.Array, rows: number, classes: number): np.Array {
  return nn.logSoftmax(logits, -1).mul(oneHot(targets, classes)).sum().mul(-1 / rows);
}

function adamW({ sizes: { count, size } }: Case): Work {
  const [weights, gradients, first, second]: Arrays[] = [[], [], [], []];
  for (let i = 0; i < count; i++) {
    for (const shape of [[size, size], [size]]) {
      weights.push(array(shape, 2 * i));
      gradients.push(array(shape, 2 * i + 1));
      first.push(np.zeros(shape));
      second.push(np.zeros(shape));
    }
  }
  const { lr, betas: [beta1, beta2], adamEpsilon } = SPEC;
  let state = { weights, first, second };
  const update = jit((
    state: { weights: Arrays; first: Arrays; second: Arrays },
    gradients: Arrays,
    stepSize: np.Array,
    correction: np.Array,
  ) => {
    const next = { weights: [] as Arrays, first: [] as Arrays, second: [] as Arrays };
    state.weights.forEach((w, i) => {
      const g = gradients[i];
      const m = state.first[i].mul(beta1).add(g.ref.mul(1 - beta1));
      const v = state.second[i].mul(beta2).add(np.square(g).mul(1 - beta2));
      const denominator = np.sqrt(v.ref).mul(correction.ref).add(adamEpsilon);
      next.weights.push(w.sub(m.ref.div(denominator).mul(stepSize.ref)));
      next.first.push(m);
      next.second.push(v);
    });
    stepSize.dispose();
    correction.dispose();
    return next;
  });
  let steps = 0;
  let early: number[] = [];
  return {
    run: async () => {
      steps++;
      state = update(
        state,
        gradients.map((g) => g.ref),
        np.array(lr / (1 - beta1 ** steps)).reshape([]),
        np.array(1 / Math.sqrt(1 - beta2 ** steps)).reshape([]),
      ) as typeof state;
      await blockUntilReady(state);
      if (steps === 1) early = power(await state.weights[0].ref.data() as Float32Array);
    },
    value: () => Promise.resolve(early),
  };
}

if (import.meta.main) await serve(await jaxJsSide(Deno.args[0] as "wasm" | "webgpu"));

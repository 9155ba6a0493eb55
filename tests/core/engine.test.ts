/** What the engine promises: when things run, what is held, what is replayed. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  attach,
  checkpoint,
  crossEntropy,
  customFunction,
  type Device,
  dropout,
  grad,
  layerNorm,
  manualSeed,
  noGrad,
  normal,
  ones,
  read,
  rmsNorm,
  type Tensor,
  tensor,
  uniform,
  Variable,
  where,
  zeros,
} from "@graft/ml";
import { forEachDevice } from "../devices.ts";

function perceptron(): { w1: Variable; w2: Variable; momentum: Variable[] } {
  manualSeed(5);
  const w1 = new Variable(normal([6, 16], { std: 0.4 }), { requiresGrad: true, name: "w1" });
  const w2 = new Variable(normal([16, 2], { std: 0.4 }), { requiresGrad: true, name: "w2" });
  return { w1, w2, momentum: [w1, w2].map((w) => new Variable(zeros(w.shape))) };
}

async function train(
  steps: number,
  each?: (step: number) => void | Promise<void>,
  dropped = 0,
): Promise<number[]> {
  const { w1, w2, momentum } = perceptron();
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) {
    const x = uniform([8, 6], { low: -1, high: 1 });
    const y = x.slice(1, 0, 2).mul(2);
    const h = dropout(x.matmul(w1).tanh(), dropped);
    const loss = h.matmul(w2).sub(y).square().mean();
    loss.backward();
    noGrad(() =>
      [w1, w2].forEach((w, i) => {
        momentum[i].assign(momentum[i].mul(0.9).add(w.grad!));
        w.assign(w.sub(momentum[i].mul(0.1 / (1 + step))));
      })
    );
    await w1.device.flush();
    w1.grad = null;
    w2.grad = null;
    losses.push(await loss.item());
    await each?.(step);
  }
  return losses;
}

forEachDevice("engine: a step replays its plan and makes nothing new", async (device) => {
  const seen: string[] = [];
  const losses = await train(8, () => {
    const { buffers, pipelines, bindings, bytes } = device.counters;
    seen.push(JSON.stringify({ buffers, pipelines, bindings, bytes, built: device.flushes.built }));
  });
  assert(losses[7] < losses[0] * 0.8, `the loss falls: ${losses}`);
  assertEquals(seen.slice(2), seen.slice(2).map(() => seen[2]));
});

forEachDevice("engine: replay on or off gives the same bits", async (device) => {
  const replayed = await train(6, undefined, 0.2);
  device.replay = false;
  const built = await train(6, undefined, 0.2);
  device.replay = true;
  assertEquals(replayed, built);
});

forEachDevice("engine: reading late, early and again", async (device) => {
  const w = new Variable(tensor([1, 2, 3]), { requiresGrad: true, name: "w" });
  const wide = w.mul(ones([400, 3])); // too large to be held
  const kept = w.mul(ones([400, 3])).keep();
  const loss = wide.sum();
  const accuracy = w.gt(1).to("f32").mean();
  loss.backward();
  noGrad(() => w.assign(w.mul(2)));
  await device.flush();
  // Scalars and small results are held; so is what was kept.
  assertEquals(await loss.item(), 2400);
  assertEquals(await accuracy.item(), Math.fround(2 / 3));
  assertEquals((await kept.data()).slice(0, 3), new Float32Array([1, 2, 3]));
  assertEquals(await w.data(), new Float32Array([2, 4, 6]));
  const error = await assertRejects(() => wide.data(), Error);
  assert(/w, .*has changed since.*keep\(\)/.test(error.message), error.message);
  // Unkept, but unchanged: computed again.
  const again = w.mul(ones([400, 3]));
  await again.sum().item();
  assertEquals((await again.data())[1199], 6);
  // A scalar of an earlier run goes into a later one.
  assertEquals(await loss.mul(2).item(), 4800);
});

forEachDevice("engine: assignments see the values of their time", async (device) => {
  const a = new Variable(tensor([1, 2]));
  const b = new Variable(tensor([10, 20]));
  const [x, y] = [a.add(0), b.add(0)];
  a.assign(y);
  b.assign(x);
  const sum = a.add(b.mul(100));
  a.assign(a.mul(3));
  assertEquals((await read(a, b, sum)).map((d) => [...d]), [[30, 60], [1, 2], [110, 220]]);
  // A reversed copy of itself cannot be written in place.
  a.assign(a.flip(0));
  assertEquals(await a.data(), new Float32Array([60, 30]));
  a.assign(b);
  b.assign(b.add(1));
  await device.flush();
  assertEquals((await read(a, b)).map((d) => [...d]), [[1, 2], [2, 3]]);
});

/** Assignments, each at most once to a variable, that read what others assign, before it or after. */
function assignAll(seed: number, variables: readonly Variable[], row: Variable): (() => void)[] {
  let state = seed;
  const below = (n: number) => {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0;
    return (state >>> 16) % n;
  };
  const pick = () => variables[below(variables.length)];
  const halves = row.dtype === "i32" ? 2 : 0.5;
  const make = (): Tensor => {
    const [x, y] = [pick(), pick()];
    switch (below(7)) {
      case 0:
        return x.add(y.flip(0));
      case 1:
        return x.mul(row);
      case 2:
        return where(x.gt(y), x, y.mul(halves));
      case 3:
        return x.square().add(pick().mul(pick()));
      default:
        return x.mul(halves).sub(y);
    }
  };
  return variables.map((v) => () => v.assign(make()));
}

forEachDevice("engine: kernels that become one give the bits of each alone", async (device) => {
  // As on the smallest device, where eight buffers may be bound.
  const backend = Object.assign(device.backend!, { maxBindings: 7 });
  const make = backend.program.bind(backend);
  backend.program = (steps, words) => {
    for (const { kernel, inputs, outputs } of steps) {
      assert(inputs.length + outputs.length <= 7, kernel.label);
    }
    return make(steps, words);
  };
  const cases = [
    ["f32", [3, 5]],
    ["f32", [130, 128]],
    ["i32", [1, 9]],
    ["f16", [4, 6]],
    ["bf16", [131, 128]],
    ["f16", [3, 7]],
  ] as const;
  for (const [dtype, shape] of cases) {
    const kernels = { alone: 0, together: 0 };
    for (let seed = 1; seed <= 8; seed++) {
      const run = async (how: "alone" | "together"): Promise<unknown[]> => {
        manualSeed(seed);
        const variables = Array.from(
          { length: 6 },
          () => new Variable(uniform([...shape], { low: -3, high: 3 }).to(dtype)),
        );
        const row = new Variable(uniform([shape[1]], { low: -3, high: 3 }).to(dtype));
        await device.flush();
        for (const assign of assignAll(seed, variables, row)) {
          assign();
          if (how === "together") continue;
          await device.flush();
          kernels[how] += device.lastReport!.kernels;
        }
        await device.flush();
        if (how === "together") kernels[how] += device.lastReport!.kernels;
        const values = await read(...variables);
        for (const v of [...variables, row]) v.dispose();
        return values;
      };
      assertEquals(await run("together"), await run("alone"), `${dtype} [${shape}], ${seed}`);
    }
    assert(kernels.together < kernels.alone, JSON.stringify({ dtype, ...kernels }));
  }
});

forEachDevice("engine: kernels become one where that takes no memory, no copy", async (device) => {
  const [a, b, c, d] = Array.from({ length: 4 }, () => new Variable(uniform([64, 64])));
  await device.flush();
  const report = async () => {
    await device.flush();
    return device.lastReport!;
  };
  a.assign(a.mul(2));
  b.assign(b.mul(3));
  c.assign(c.add(a)); // with a, before b
  assertEquals((await report()).labels.toSorted(), ["mul", "mul & add"]);
  a.assign(b.mul(2));
  c.assign(d.flip(0));
  d.assign(d.sub(a).mul(b)); // not before c, which reads all of its old value
  const { kernels, labels } = await report();
  assert(kernels === 3 && !labels.includes("assign"), `${labels}`);
  c.assign(a.exp().matmul(b));
  const one = await report();
  c.assign(a.exp().matmul(b));
  d.assign(a.tanh().matmul(b)); // its tanh not before the first product, where it would live longer
  const two = await report();
  assertEquals([two.kernels, two.temporaryBytes], [2 * one.kernels, one.temporaryBytes]);
});

forEachDevice("engine: a cache is updated in place, in order", async (device) => {
  const cache = new Variable(zeros([2, 5, 3]));
  await device.flush();
  const sums: number[] = [];
  let before = 0;
  for (let at = 0; at < 5; at++) {
    const old = cache.mul(1); // recorded before, read after: the old value
    cache.update(ones([2, 1, 3]).mul(at + 1), 1, at);
    const [now, then] = await read(cache.sum(), old.sum().add(cache.sum()));
    sums.push(now[0], then[0]);
    if (at === 2) before = device.flushes.built;
  }
  assertEquals(sums, [6, 6, 18, 24, 36, 54, 60, 96, 90, 150]);
  assertEquals(device.flushes.built, before, "the position is no part of the plan");
});

forEachDevice("engine: gradients add up; second derivatives; checkpoints", async (device) => {
  const w = new Variable(tensor([0.5, -1, 2]), { requiresGrad: true });
  w.square().sum().backward();
  w.mul(3).sum().backward();
  assertEquals(await w.grad!.data(), new Float32Array([4, 1, 7]));
  w.grad = null;
  const f = (x: typeof w) => x.mul(x).mul(x).sum();
  const [first] = grad(f(w), [w], { createGraph: true });
  const [second] = grad(first!.sum(), [w]);
  assertEquals(await second!.data(), new Float32Array([3, -6, 12]));

  manualSeed(3);
  const block = (x: Variable) => dropout(x.mul(w).exp(), 0.5).sum();
  const x = new Variable(tensor([0.3, 0.2, 0.1]), { requiresGrad: true });
  const plain = grad(block(x), [x, w]);
  manualSeed(3);
  const saved = grad(checkpoint((x) => block(x as Variable), x), [x, w]);
  for (let i = 0; i < 2; i++) {
    assertEquals(await saved[i]!.data(), await plain[i]!.data());
  }
  const y = attach(tensor([2]));
  const [dy] = grad(customFunction([y], ([y]) => y.floor(), ({ g }) => [g.mul(7)]).sum(), [y]);
  assertEquals(await dy!.data(), new Float32Array([7]));
  void device;
});

forEachDevice(
  "engine: second derivatives of what keeps forward's sums for its gradient",
  async () => {
    const shape = [3, 4];
    const numbers = (phase: number) =>
      Float32Array.from({ length: 12 }, (_, i) => Math.sin(1.7 * i + phase));
    const [at, along, weights] = [numbers(1), numbers(2), tensor(numbers(9), { shape })];
    const affine = tensor([0.5, 1.2, -0.7, 0.9]);
    const functions: Record<string, (x: Variable) => Tensor> = {
      layerNorm: (x) => layerNorm(x, affine, affine).mul(weights).sum(),
      rmsNorm: (x) => rmsNorm(x, affine).mul(weights).sum(),
      crossEntropy: (x) => crossEntropy(x, tensor([1, 3, 0], { dtype: "i32" })),
    };
    for (const [name, f] of Object.entries(functions)) {
      const moved = (by: number) =>
        new Variable(tensor(at.map((v, i) => v + by * along[i]), { shape }), {
          requiresGrad: true,
        });
      const x = moved(0);
      const [first] = grad(f(x), [x], { createGraph: true });
      const [second] = grad(first!.mul(tensor(along, { shape })).sum(), [x]);
      const [up, down] = await Promise.all([1, -1].map((sign) => {
        const x = moved(sign / 256);
        return grad(f(x), [x])[0]!.data();
      }));
      (await second!.data()).forEach((v, i) => {
        const want = 128 * (up[i] - down[i]);
        assert(
          Math.abs(v - want) < 2e-3,
          `${name}: element ${i} is ${v}, differences give ${want}`,
        );
      });
    }
  },
);

forEachDevice("engine: a frozen weight records no gradient", async (device: Device) => {
  const x = tensor([[1, 2], [3, 4]]);
  const frozen = new Variable(tensor([[1, 0], [0, 1]]));
  const trained = new Variable(tensor([[1, 0], [0, 1]]), { requiresGrad: true });
  x.matmul(trained).matmul(frozen).sum().backward();
  await device.flush();
  assertEquals(frozen.grad, null);
  // Forward: two products and a sum. Backward: one for the way through, one for the trained weight.
  const products = device.lastReport!.labels.filter((l) => l === "matmul").length;
  assertEquals(products, 4);
  assertEquals(await trained.grad!.data(), new Float32Array([4, 4, 6, 6]));
});

forEachDevice("engine: random integers are the generator's, to the bit", async () => {
  const { randomBits, threefryWord, Generator } = await import("@graft/ml");
  const bits = await randomBits([3, 5], { generator: new Generator(2 ** 40 + 7) }).data();
  const want = Array.from({ length: 15 }, (_, i) => threefryWord(7, 256, i, 0));
  assertEquals([...bits], want);
  const u = await uniform([10000], { generator: new Generator(1) }).data();
  assert(u.every((v) => v >= 0 && v < 1));
  const lone = await normal([1], { generator: new Generator(4) }).data();
  assertEquals(lone[0], (await normal([3], { generator: new Generator(4) }).data())[0]);
  const z = await normal([20000], { generator: new Generator(1) }).data();
  const mean = z.reduce((a, b) => a + b) / z.length;
  const variance = z.reduce((a, b) => a + (b - mean) ** 2, 0) / z.length;
  assert(Math.abs(mean) < 0.03 && Math.abs(variance - 1) < 0.05, `${mean} ${variance}`);
});

forEachDevice("engine: 16-bit floats round to nearest even where they are stored", async () => {
  const values = [1, 1.00048828125, 65504, 70000, 6e-8, -0.1, 1 / 3, 2049];
  const half = await tensor(values).to("f16").data();
  assertEquals([...half], [...new Float16Array(values)]);
  const brain = await tensor([1, 1 / 3, 1.00390625, 1.01171875, 3e38]).to("bf16").data();
  assertEquals([...brain], [1, 0.333984375, 1, 1.015625, 3.00405527e38].map(Math.fround));
  const sum = tensor([1, 2], { dtype: "bf16" }).add(tensor([0.5, 0.25], { dtype: "bf16" }));
  assertEquals([...await sum.data()], [1.5, 2.25]);
});

forEachDevice("engine: empty tensors and zero-size reductions", async () => {
  const empty = zeros([0, 3]);
  assertEquals((await empty.add(1).data()).length, 0);
  assertEquals(await empty.sum(0).data(), new Float32Array([0, 0, 0]));
});

forEachDevice("engine: reads at the same time see what was assigned", async (device: Device) => {
  const small = tensor([1, 2, 3]).add(1);
  await device.flush(); // runs the small result, which the next plan takes from the host
  const [a, b] = [new Variable(zeros([3])), new Variable(zeros([3]))];
  a.assign(small.mul(2));
  b.assign(small.mul(3));
  const values = await Promise.all([a.data(), b.data()]);
  assertEquals(values, [new Float32Array([4, 6, 8]), new Float32Array([6, 9, 12])]);
});

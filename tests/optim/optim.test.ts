/** Optimizers against PyTorch's rules on numbers, their state, schedules and clipping. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { full, tensor, Variable } from "@graft/ml";
import {
  Adam,
  AdamW,
  clipGradNorm,
  constantSchedule,
  cosineSchedule,
  linearSchedule,
  loadCheckpoint,
  type Optimizer,
  saveCheckpoint,
  SGD,
} from "@graft/ml/optim";
import { forEachDevice } from "../devices.ts";

type Rule = (p: number, g: number, step: number, state: { m: number; v: number }) => number;

const adam = (lr: number, decay: number, decoupled: boolean): Rule => (p, g, step, s) => {
  if (decoupled) p *= 1 - lr * decay;
  else g += decay * p;
  s.m = 0.9 * s.m + 0.1 * g;
  s.v = 0.999 * s.v + 0.001 * g * g;
  const denominator = Math.sqrt(s.v) / Math.sqrt(1 - 0.999 ** step) + 1e-8;
  return p - lr / (1 - 0.9 ** step) * s.m / denominator;
};

const cases: [string, (p: Variable[]) => Optimizer, Rule][] = [
  ["SGD", (p) => new SGD(p, { lr: 0.1 }), (p, g) => p - 0.1 * g],
  [
    "SGD with momentum, dampening and decay",
    (p) => new SGD(p, { lr: 0.1, momentum: 0.9, dampening: 0.5, weightDecay: 0.2 }),
    (p, g, step, s) => {
      g += 0.2 * p;
      s.m = step === 1 ? g : 0.9 * s.m + 0.5 * g;
      return p - 0.1 * s.m;
    },
  ],
  [
    "SGD with Nesterov's momentum",
    (p) => new SGD(p, { lr: 0.1, momentum: 0.9, nesterov: true }),
    (p, g, _step, s) => {
      s.m = 0.9 * s.m + g;
      return p - 0.1 * (g + 0.9 * s.m);
    },
  ],
  ["Adam", (p) => new Adam(p, { lr: 0.05 }), adam(0.05, 0, false)],
  ["Adam with decay", (p) => new Adam(p, { lr: 0.05, weightDecay: 0.1 }), adam(0.05, 0.1, false)],
  ["AdamW", (p) => new AdamW(p, { lr: 0.05 }), adam(0.05, 0.01, true)],
];

forEachDevice("optim: five steps are PyTorch's", async (device, t) => {
  for (const [name, make, rule] of cases) {
    await t.step(name, async () => {
      const start = [1, -2, 0.5, 3];
      const w = new Variable(tensor(start), { requiresGrad: true });
      const unused = new Variable(tensor([7]), { requiresGrad: true });
      const optimizer = make([w, unused]);
      const states = start.map(() => ({ m: 0, v: 0 }));
      let expected = start;
      for (let step = 1; step <= 5; step++) {
        w.square().mul(tensor([1, 2, 3, 4])).sum().backward(); // gradient: 2 (i + 1) w
        await optimizer.step();
        optimizer.zeroGrad();
        const { kernels } = device.lastReport!;
        assertEquals(kernels, 2, "the loss; gradient, state and weight in one");
        expected = expected.map((p, i) => rule(p, 2 * (i + 1) * p, step, states[i]));
        (await w.data()).forEach((value, i) => {
          const error = Math.abs(value - expected[i]) / Math.max(1, Math.abs(expected[i]));
          assert(error < 2e-6, `step ${step}, element ${i}: ${value}, needs ${expected[i]}`);
        });
      }
      assertEquals([...await unused.data()], [7]); // no gradient: left alone
    });
  }
});

forEachDevice("optim: groups have settings of their own", async () => {
  const [a, b] = [1, 1].map((x) => new Variable(tensor([x]), { requiresGrad: true }));
  const optimizer = new SGD([{ parameters: [a] }, { parameters: [b], lr: 0.5 }], { lr: 0.1 });
  a.add(b).sum().backward();
  await optimizer.step();
  assert(Math.abs(await a.item() - 0.9) < 1e-6);
  assertEquals(await b.item(), 0.5);
});

forEachDevice("optim: clipping scales by the global norm", async () => {
  const a = new Variable(full([2], 3), { requiresGrad: true });
  const b = new Variable(full([1, 2], 4), { requiresGrad: true });
  const none = new Variable(full([1], 4), { requiresGrad: true });
  const record = (): void => a.square().sum().add(b.square().sum()).div(2).backward();
  record();
  const norm = clipGradNorm([a, b, none], 1);
  assert(Math.abs(await norm.item() - Math.sqrt(50)) < 1e-5);
  assert(Math.abs((await a.grad!.data())[0] - 3 / Math.sqrt(50)) < 1e-5);
  a.grad = b.grad = null;
  record();
  assert(Math.abs(await clipGradNorm([a, b], 100).item() - Math.sqrt(50)) < 1e-5);
  assertEquals([...await b.grad!.data()], [4, 4]);
  assertThrows(() => clipGradNorm([none], 1), RangeError, "backward");
  assertThrows(() => clipGradNorm([a], NaN), RangeError, "maxNorm");
});

forEachDevice("optim: a step that does not take place changes nothing", async () => {
  const w = new Variable(tensor([1, 2]), { requiresGrad: true });
  const optimizer = new AdamW([w], { lr: 0.1 });
  w.square().sum().backward();
  await optimizer.step();
  optimizer.zeroGrad();
  const before = await w.data(), state = await optimizer.state();
  w.mul(NaN).sum().backward();
  const norm = clipGradNorm([w], 1);
  await optimizer.step({ when: norm.isnan().not().and(norm.lt(3e38)) });
  assert(Number.isNaN(await norm.item()));
  assertEquals(await w.data(), before);
  assertEquals((await optimizer.state()).tensors, state.tensors);
});

forEachDevice("optim: a checkpoint goes on to the bit, and only where it fits", async () => {
  const path = `${await Deno.makeTempDir()}/state.safetensors`;
  const make = (
    shape = [3],
  ): { w: Variable; optimizer: Optimizer; parameters: Map<string, Variable> } => {
    const w = new Variable(full(shape, 1.5), { requiresGrad: true });
    return { w, optimizer: new AdamW([w], { lr: 0.1 }), parameters: new Map([["w", w]]) };
  };
  const run = async ({ w, optimizer }: ReturnType<typeof make>, steps: number): Promise<void> => {
    for (let i = 0; i < steps; i++) {
      w.square().mul(tensor([1, 2, 3])).sum().backward();
      await optimizer.step();
      optimizer.zeroGrad();
    }
  };
  const unbroken = make();
  await run(unbroken, 7);
  const first = make();
  await run(first, 4);
  await saveCheckpoint(path, first, { step: 4 });
  const second = make();
  assertEquals(await loadCheckpoint(path, second), { step: 4 });
  await run(second, 3);
  assertEquals(await second.w.data(), await unbroken.w.data());
  assertEquals(
    (await second.optimizer.state()).tensors,
    (await unbroken.optimizer.state()).tensors,
  );

  const other = make([2]);
  await assertRejects(() => loadCheckpoint(path, other), Error, "w needs F32 [2], has F32 [3]");
  const wrong = new SGD([second.w]);
  await assertRejects(
    () => loadCheckpoint(path, { parameters: second.parameters, optimizer: wrong }),
    Error,
    "it is of AdamW, needs SGD",
  );
  await Deno.remove(path);
});

forEachDevice("optim: what cannot be is refused", async () => {
  const w = new Variable(tensor([1]), { requiresGrad: true });
  const frozen = new Variable(tensor([1]));
  const bad: [() => unknown, string][] = [
    [() => new SGD([]), "at least one parameter"],
    [() => new SGD([w], { lr: -1 }), "lr must be a number from 0 on, got -1"],
    [() => new Adam([w], { lr: NaN }), "lr must be a number from 0 on, got NaN"],
    [() => new AdamW([w], { betas: [0.9, 1] }), "betas[1]"],
    [() => new AdamW([w], { weightDecay: -0.1 }), "weightDecay"],
    [() => new SGD([w], { nesterov: true }), "nesterov"],
    [() => new SGD([w, w]), "twice"],
    [() => new SGD([frozen]), "require a gradient"],
    [() => cosineSchedule(10, { warmup: 11 }), "warmup"],
  ];
  for (const [call, part] of bad) assertThrows(call, Error, part);
  const optimizer = new SGD([w]);
  assertThrows(() => optimizer.lr = NaN, RangeError, "lr");
  await Promise.resolve();
});

Deno.test("optim: schedules", () => {
  assertEquals([0, 1, 2, 9].map(constantSchedule({ warmup: 2 })), [0.5, 1, 1, 1]);
  assertEquals([0, 1, 2, 3, 4, 5].map(linearSchedule(5)), [1, 0.75, 0.5, 0.25, 0, 0]);
  const cosine = cosineSchedule(12, { warmup: 2, end: 0.1 });
  assertEquals([0, 1, 2].map(cosine), [0.5, 1, 1]);
  assert(Math.abs(cosine(11) - 0.1) < 1e-12 && cosine(12) === cosine(11));
});

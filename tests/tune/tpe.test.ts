/** tune/: the TPE sampler, its densities against independent formulas and its searches against random. */

import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import {
  choice,
  conditional,
  type Definition,
  integer,
  logUniform,
  type Params,
  type Plain,
  Random,
  RandomSampler,
  type Sampler,
  Study,
  TpeSampler,
  uniform,
  type Value,
} from "@graft/ml/tune";
import { normalMass } from "../../tune/samplers/normal.ts";
import { forgetting, parzen } from "../../tune/samplers/parzen.ts";

/** Simpson's rule. */
function integral(f: (x: number) => number, from: number, to: number, cells = 4000): number {
  const h = (to - from) / cells;
  let sum = f(from) + f(to);
  for (let i = 1; i < cells; i++) sum += f(from + i * h) * (i % 2 === 1 ? 4 : 2);
  return sum * h / 3;
}

const bell = (x: number, mean: number, sd: number) =>
  Math.exp(-(((x - mean) / sd) ** 2) / 2) / (sd * Math.sqrt(2 * Math.PI));

/** n observations of a parameter, crowded in its lower part, with duplicates. */
function observed(parameter: Plain, n: number): Value[] {
  const random = new Random(n, 7);
  const parent = parzen(parameter, [], []);
  return Array.from({ length: n }, () => {
    const [a, b] = [parent.sample(random), parent.sample(random)];
    return typeof a === "number" && parameter.kind !== "choice" ? Math.min(a, b as number) : a;
  });
}

Deno.test("tune: the normal's mass is its integral", () => {
  const pairs = [[-8, -7.5], [-3, 1], [0, 0.5], [1.9, 2.1], [2.8, 2.9], [5, 9], [-1e-5, 1e-5]];
  for (const [from, to] of pairs) {
    const expected = integral((x) => bell(x, 0, 1), from, to);
    assertAlmostEquals(normalMass(from, to) / expected, 1, 1e-10, `${from} to ${to}`);
  }
  assertAlmostEquals(normalMass(-Infinity, 0), 0.5, 1e-15);
});

Deno.test("tune: densities integrate to 1", () => {
  for (const n of [0, 1, 2, 9, 60]) {
    const u = parzen(uniform(-3, 5), observed(uniform(-3, 5), n), forgetting(n));
    assertAlmostEquals(integral((x) => Math.exp(u.logDensity(x)), -3, 5), 1, 1e-8);
    const range = logUniform(1e-6, 10);
    const l = parzen(range, observed(range, n), forgetting(n));
    const inLog = (y: number) => Math.exp(l.logDensity(Math.min(Math.max(Math.exp(y), 1e-6), 10)));
    assertAlmostEquals(integral(inLog, Math.log(1e-6), Math.log(10)), 1, 1e-8);
    for (
      const whole of [integer(-7, 30), integer(1, 50, { step: 3 }), integer(1, 99, { log: true })]
    ) {
      const p = parzen(whole, observed(whole, n), forgetting(n));
      let sum = 0;
      for (let k = whole.low; k <= whole.high; k += whole.step) sum += Math.exp(p.logDensity(k));
      assertAlmostEquals(sum, 1, 1e-10);
    }
    const c = choice(["a", "b", "c"]);
    const p = parzen(c, observed(c, n), forgetting(n));
    const parts = c.values.map((v) => Math.exp(p.logDensity(v)));
    assertAlmostEquals(parts.reduce((a, b) => a + b), 1, 1e-12);
  }
});

Deno.test("tune: densities are those of formulas written out by hand", () => {
  // Two observations in [0, 10] and the prior at 5. Widths by the larger distance to a neighbour: 1
  // each; at least 10 / 4, so both 2.5; the prior's is 10.
  const p = parzen(uniform(0, 10), [2, 3], [1, 0.5]);
  const kernels: [number, number, number][] = [[1, 2, 2.5], [0.5, 3, 2.5], [1, 5, 10]];
  const cut = kernels.map(([, m, s]) => integral((y) => bell(y, m, s), 0, 10));
  for (const x of [0, 1, 2.2, 6, 10]) {
    const expected = kernels.reduce(
      (sum, [w, m, s], i) => sum + w / 2.5 * bell(x, m, s) / cut[i],
      0,
    );
    assertAlmostEquals(Math.exp(p.logDensity(x)), expected, 1e-12);
  }
  // Many: the least width is the range over 100, and a wide gap makes a wide kernel.
  const many = Array.from({ length: 198 }, (_, i) => i < 99 ? i / 100 : 9 + i / 1000);
  const q = parzen(uniform(0, 10), many, many.map(() => 1));
  const width = (m: number) => {
    if (m === 5) return 10;
    const i = many.indexOf(m);
    return Math.max(m - (many[i - 1] ?? m), (many[i + 1] ?? m) - m, 0.1);
  };
  const all = [...many, 5];
  const parts = all.map((m) => [m, width(m), integral((y) => bell(y, m, width(m)), 0, 10, 2000)]);
  for (const x of [0.5, 3, 9.15]) {
    const expected = parts.reduce((sum, [m, s, c]) => sum + bell(x, m, s) / c / 199, 0);
    assertAlmostEquals(Math.exp(q.logDensity(x)), expected, 1e-9);
  }
  // A whole number has the mass of the cell around it, on a logarithmic scale that of its logarithms.
  const r = parzen(integer(1, 8, { log: true }), [4], [1]);
  const [low, high] = [Math.log(0.5), Math.log(8.5)];
  const range = high - low;
  const middle = (low + high) / 2;
  const gap = Math.log(4) - low; // one observation: the ends are its neighbours
  const k = [[Math.log(4), Math.max(gap, range / 3)], [middle, range]].map(([m, s]) =>
    integral((y) => bell(y, m, s), Math.log(2.5), Math.log(3.5)) /
    integral((y) => bell(y, m, s), low, high)
  );
  assertAlmostEquals(Math.exp(r.logDensity(3)), (k[0] + k[1]) / 2, 1e-10);
  // Two of "b", one of "a": kernels of 1 at their own and 1/4 everywhere, over 1.75; prior 1/3.
  const c = parzen(choice(["a", "b", "c"]), ["b", "a", "b"], [1, 1, 1]);
  const expected = (1.25 + 1.25 + 0.25) / 1.75 / 4 + 1 / 3 / 4;
  assertAlmostEquals(Math.exp(c.logDensity("b")), expected, 1e-12);
  // Linear forgetting.
  assertEquals(forgetting(25), new Array(25).fill(1));
  assertEquals(forgetting(26)[0], 1 / 26);
  assertEquals(forgetting(28).slice(0, 4), [1 / 28, 1 / 28 + (27 / 28) / 2, 1, 1]);
});

Deno.test("tune: samples lie within the bounds and are spread as the density says", () => {
  const cases: [Plain, (u: number) => number][] = [
    [uniform(-3, 5), (u) => -3 + 8 * u],
    [logUniform(1e-6, 10), (u) => 1e-6 * 1e7 ** u],
  ];
  const draws = 20_000;
  const bins = 20;
  for (const [parameter, at] of cases) {
    const p = parzen(parameter, observed(parameter, 12), forgetting(12));
    const random = new Random(1);
    const counts = new Array(bins).fill(0);
    const { low, high } = parameter as { low: number; high: number };
    for (let i = 0; i < draws; i++) {
      const x = p.sample(random) as number;
      assert(x >= low && x <= high);
      counts[
        Math.max(
          0,
          Array.from({ length: bins }, (_, b) => b).findLastIndex((b) => x >= at(b / bins)),
        )
      ]++;
    }
    const width = parameter.kind === "uniform" ? 8 : Math.log(1e7);
    const chi = counts.reduce((sum, count, b) => {
      const part = integral(
        (u) => width * Math.exp(p.logDensity(Math.min(at(u), high))),
        b / bins,
        (b + 1) / bins,
        100,
      );
      return sum + (count - draws * part) ** 2 / (draws * part);
    }, 0);
    assert(chi < 43.8, `chi-square ${chi} of 19 degrees of freedom: p < 0.001`);
  }
  for (
    const parameter of [
      integer(1, 20, { step: 3 }),
      integer(1, 12, { log: true }),
      choice([5, 6, 7]),
    ]
  ) {
    const p = parzen(parameter, observed(parameter, 6), forgetting(6));
    const random = new Random(2);
    const counts = new Map<Value, number>();
    for (let i = 0; i < draws; i++) {
      const x = p.sample(random);
      counts.set(x, (counts.get(x) ?? 0) + 1);
    }
    let total = 0;
    for (const [x, count] of counts) {
      const part = Math.exp(p.logDensity(x));
      total += part;
      assert(
        Math.abs(count / draws - part) < 4 * Math.sqrt(part / draws),
        `${x}: ${count} ${part}`,
      );
    }
    assertAlmostEquals(total, 1, 1e-3); // every value came, none that is not there
  }
});

Deno.test("tune: TPE goes on from ten random trials, and counts trials as it says", () => {
  const space = { x: uniform(0, 1) };
  const random = new Study({ space, sampler: new RandomSampler(), seed: 4 });
  const study = new Study({ space, seed: 4 });
  const x: number[] = [];
  for (let i = 0; i < 14; i++) {
    // A broken trial does not count, so the fourteenth is the eleventh that does.
    const [a, b] = [study.ask()!, random.ask()!];
    x.push(a.params.x);
    assertEquals(a.params.x === b.params.x, i < 13, `trial ${i}`);
    random.tell(b, 0);
    study.tell(a, i < 3 ? { state: "failed" } : i === 5 ? NaN : i === 6 ? { state: "pruned" } : i);
  }
  assertEquals(study.trials.filter((t) => t.diverged).length, 1);
  // Pruned trials stand behind complete ones: with the complete ones at the right and the pruned ones
  // at the left, the search stays at the right, and the same for diverged ones.
  for (const bad of [{ state: "pruned" } as const, NaN]) {
    const s = new Study({ space, seed: 1 });
    for (let i = 0; i < 60; i++) {
      const t = s.ask()!;
      s.tell(t, t.params.x < 0.7 ? bad : 1 - t.params.x * 1e-3);
    }
    const late = s.trials.slice(30).filter((t) => t.params.x >= 0.7).length;
    assert(late >= 24, `${late} of 30`);
  }
});

Deno.test("tune: parallel TPE trials keep apart", async () => {
  const study = new Study({
    space: { kind: choice(["a", "b", "c", "d"]), x: uniform(0, 1) },
    seed: 2,
  });
  await study.run(async ({ params }) => {
    await Promise.resolve();
    return params.x;
  }, { trials: 40, parallel: 8 });
  assertEquals(new Set(study.trials.map((t) => t.params.x)).size, 40);
  assert(study.best().params.x < 0.1);
});

// Five standard functions.

const A = [
  [10, 3, 17, 3.5, 1.7, 8],
  [0.05, 10, 17, 0.1, 8, 14],
  [3, 3.5, 1.7, 10, 17, 8],
  [17, 8, 0.05, 10, 0.1, 14],
];
const P = [
  [1312, 1696, 5569, 124, 8283, 5886],
  [2329, 4135, 8307, 3736, 1004, 9991],
  [2348, 1451, 3522, 2883, 3047, 6650],
  [4047, 8828, 8732, 5743, 1091, 381],
];
const unit = uniform(0, 1);

/** The medians, over 20 seeds, of the best true value after 60 trials. */
async function medians<const S extends Definition>(
  space: S,
  f: (params: Params<S>) => number,
  noise = 0,
): Promise<{ tpe: number; random: number }> {
  const median = async (sampler: Sampler) => {
    const found: number[] = [];
    for (let seed = 0; seed < 20; seed++) {
      const study = new Study({ space, sampler, seed });
      await study.run(
        (t) => f(t.params) + noise * new Random(1000 + seed, t.number).normal(),
        { trials: 60 },
      );
      found.push(f(study.best().params)); // without the noise
    }
    found.sort((a, b) => a - b);
    return (found[9] + found[10]) / 2;
  };
  return { tpe: await median(new TpeSampler()), random: await median(new RandomSampler()) };
}

const functions: Record<string, () => Promise<{ tpe: number; random: number }>> = {
  "Branin (least 0.398)": () =>
    medians(
      { x: uniform(-5, 10), y: uniform(0, 15) },
      ({ x, y }) =>
        (y - 5.1 / (4 * Math.PI ** 2) * x * x + 5 / Math.PI * x - 6) ** 2 +
        10 * (1 - 1 / (8 * Math.PI)) * Math.cos(x) + 10,
    ),
  "Hartmann 6 (least -3.322)": () =>
    medians({ a: unit, b: unit, c: unit, d: unit, e: unit, f: unit }, (p) => {
      const x = [p.a, p.b, p.c, p.d, p.e, p.f];
      return -[1, 1.2, 3, 3.2].reduce(
        (sum, alpha, i) =>
          sum + alpha * Math.exp(-x.reduce((q, v, j) => q + A[i][j] * (v - P[i][j] / 1e4) ** 2, 0)),
        0,
      );
    }),
  "a bowl on logarithmic scales (least 0)": () =>
    medians(
      { rate: logUniform(1e-6, 1), decay: logUniform(1e-6, 1) },
      (p) => Math.log10(p.rate / 3e-4) ** 2 + Math.log10(p.decay / 1e-2) ** 2 / 4,
    ),
  "a conditional space (least 0.1)": () =>
    medians({
      kind: choice(["lora", "prompt", "full"]),
      rank: conditional(integer(1, 64, { log: true }), { on: "kind", is: ["lora"] }),
      length: conditional(integer(1, 100), { on: "kind", is: ["prompt"] }),
      rate: logUniform(1e-6, 1),
    }, ({ kind, rank, length, rate }) => {
      const off = (best: number) => Math.log10(rate / best) ** 2;
      if (kind === "lora") return 0.1 + Math.log2(rank! / 16) ** 2 / 10 + off(1e-3);
      if (kind === "prompt") return 0.5 + ((length! - 20) / 30) ** 2 + off(1e-1);
      return 1 + off(1e-5);
    }),
  "a bowl with noise of deviation 1 (least 0)": () =>
    medians(
      { x: uniform(-5, 5), y: uniform(-5, 5) },
      ({ x, y }) => (x - 1) ** 2 + (y + 2) ** 2,
      1,
    ),
};

for (const [name, run] of Object.entries(functions)) {
  Deno.test(`tune: TPE beats random on ${name}`, async () => {
    const { tpe, random } = await run();
    assert(tpe < random, `after 60 trials: tpe ${tpe}, random ${random}`);
  });
}

/** tune/: spaces, ask and tell, grids, pruners, study files, analysis. The samplers' own: tune_tpe. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  choice,
  conditional,
  type Definition,
  GridSampler,
  HalvingPruner,
  history,
  importance,
  integer,
  logUniform,
  MedianPruner,
  parallelCoordinates,
  Random,
  RandomSampler,
  slices,
  Space,
  Study,
  TpeSampler,
  uniform,
} from "@graft/ml/tune";

/** A space with every kind of parameter. */
const mixed = {
  rate: logUniform(1e-5, 1e-1),
  kind: choice(["sgd", "adam"]),
  momentum: conditional(uniform(0, 0.9), { on: "kind", is: ["sgd"] }),
  nesterov: conditional(choice([true, false]), { on: "momentumOn", is: [1] }),
  momentumOn: conditional(integer(0, 1), { on: "kind", is: ["sgd"] }),
  layers: integer(2, 11, { step: 4 }),
  rank: integer(1, 64, { log: true }),
};

function mixedLoss(p: { rate: number; kind: string; layers: number; momentum?: number }): number {
  return Math.log10(p.rate / 1e-3) ** 2 + (p.momentum ?? 0.5) + p.layers / 10;
}

Deno.test("tune: every sampler stays in the space, conditions included", async () => {
  const samplers = [
    new RandomSampler(),
    new TpeSampler(),
    new GridSampler({ points: { rate: 2, momentum: 2, rank: 3 }, shuffle: 1 }),
  ];
  for (const sampler of samplers) {
    const study = new Study({ space: mixed, sampler, seed: 5 });
    await study.run(({ params }) => mixedLoss(params), { trials: 50 });
    const seen = new Set<string>();
    for (const { params } of study.trials) {
      assertEquals(study.space.fault(params), undefined);
      assertEquals("momentum" in params, params.kind === "sgd");
      assertEquals("nesterov" in params, params.momentumOn === 1);
      assert([2, 6, 10].includes(params.layers));
      seen.add(Object.keys(params).join());
    }
    assertEquals(seen.size, 3, sampler.name);
  }
});

Deno.test("tune: parameters are typed by their space", () => {
  const study = new Study({ space: mixed });
  const { params } = study.ask()!;
  const rate: number = params.rate;
  const kind: "sgd" | "adam" = params.kind;
  const nesterov: boolean | undefined = params.nesterov;
  // @ts-expect-error a parameter with a condition may be missing
  const momentum: number = params.momentum;
  // @ts-expect-error no such parameter
  params.other;
  assert([rate, kind, nesterov, momentum].length === 4);
});

Deno.test("tune: what is wrong with a space is said, with the parameter", () => {
  const cases: [() => unknown, string][] = [
    [() => new Study({ space: {} }), "has no parameters"],
    [() => choice([]), "at least one value"],
    [() => choice([1, 2, 1]), "1 is in the list twice"],
    [() => choice([NaN]), "JSON"],
    [() => uniform(1, 0), "low must not be above high, got 1 and 0"],
    [() => uniform(0, Infinity), "finite"],
    [() => uniform(NaN, 1), "finite"],
    [() => uniform(-1e308, 1e308), "too far apart"],
    [() => logUniform(0, 1), "low must be above 0, got 0"],
    [() => integer(0, 1.5), "high must be a whole number, got 1.5"],
    [() => integer(5, 4), "low must not be above high"],
    [() => integer(0, 4, { step: 0 }), "step must be at least 1"],
    [() => integer(0, 4, { log: true }), "low must be above 0"],
    [() => integer(1, 4, { log: true, step: 2 }), "log needs a step of 1"],
    [() => conditional(uniform(0, 1), { on: "a", is: [] }), "would never exist"],
  ];
  const only = (space: Definition) => () => new Space(space);
  const x = uniform(0, 1);
  const on = (name: string, is: readonly (string | number)[] = [1]) =>
    conditional(choice([1, 2]), { on: name, is });
  cases.push(
    [only({ ["__proto__"]: x }), "__proto__ cannot be a name"],
    [only({ x, y: on("z") }), "y hangs on z, which is not there (x, y)"],
    [only({ x, y: on("x") }), "parameter y: conditional: x is a uniform"],
    [only({ x: choice(["a"]), y: on("x", ["b"]) }), 'parameter y: conditional: x can never be "b"'],
    [only({ x: on("y"), y: on("x") }), "circle: x → y → x"],
    [only({ x: { kind: "uniform", low: 2, high: 1 } }), "parameter x: uniform: low must not"],
    [only({ x: { kind: "normal" } as never }), "parameter x: normal is not a kind"],
  );
  for (const [make, message] of cases) assertThrows(make, RangeError, message);
  // A space with one point is a space.
  const study = new Study({ space: { x: uniform(2, 2), y: integer(3, 3), z: logUniform(1, 1) } });
  for (let i = 0; i < 12; i++) {
    const trial = study.ask()!;
    assertEquals(trial.params, { x: 2, y: 3, z: 1 });
    study.tell(trial, i);
  }
});

Deno.test("tune: a grid has each point once, also in parallel, and then ends", async () => {
  const sampler = new GridSampler({
    points: { rate: 3, momentum: [0.1, 0.5], rank: 4 },
    shuffle: 2,
  });
  const study = new Study({ space: mixed, sampler });
  const random = new Random(1);
  const { ended } = await study.run(async (trial) => {
    await new Promise((done) => setTimeout(done, random.integer(3)));
    if (trial.number % 7 === 0) throw new Error("broken"); // its point is not tried again
    return trial.number % 5 === 0 ? NaN : mixedLoss(trial.params);
  }, { parallel: 8 });
  assertEquals(ended, "exhausted");
  const points = study.trials.map((t) => JSON.stringify(t.params));
  // rate × layers × rank × (adam, or sgd × momentum × (no nesterov, or two of it))
  assertEquals(points.length, 3 * 3 * 4 * (1 + 2 * 3));
  assertEquals(new Set(points).size, points.length);
  assertEquals(study.ask(), undefined);
  assertEquals(study.ask(), undefined);
  assertEquals(await study.run(() => 0, { trials: 1000 }), { ended: "exhausted" });
});

Deno.test("tune: trials in workers, several at a time", async () => {
  const code = `onmessage = ({ data }) => {
    if (data.rank === 8) return postMessage({ error: "out of memory" });
    postMessage({ step: 1, loss: data.rate });
    postMessage({ loss: data.rate * data.rank });
  };`;
  const source = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  let running = 0, most = 0;
  const study = new Study({
    space: { rate: choice([1, 2, 3]), rank: choice([4, 8]) },
    sampler: new GridSampler(),
  });
  const { ended } = await study.run(async (trial) => {
    const worker = new Worker(source, { type: "module" });
    most = Math.max(most, ++running);
    try {
      return await new Promise<number>((resolve, reject) => {
        worker.onmessage = ({ data: { step, loss, error } }) => {
          if (error) reject(new Error(error));
          else if (step === undefined) resolve(loss);
          else trial.report(step, loss);
        };
        worker.postMessage(trial.params);
      });
    } finally {
      running--;
      worker.terminate();
    }
  }, { parallel: 3 });
  URL.revokeObjectURL(source);
  assertEquals([ended, most], ["exhausted", 3]);
  assertEquals(
    study.trials.map(({ params, state, value, reports }) => [
      params.rate,
      params.rank,
      state,
      value,
      reports.length,
    ]),
    [
      [1, 4, "complete", 4, 1],
      [1, 8, "failed", undefined, 0],
      [2, 4, "complete", 8, 1],
      [2, 8, "failed", undefined, 0],
      [3, 4, "complete", 12, 1],
      [3, 8, "failed", undefined, 0],
    ],
  );
  assertEquals(study.trials[1].reason, "out of memory");
  assertEquals(study.best().params, { rate: 1, rank: 4 });
});

Deno.test("tune: a grid's points, and what is wrong with them", () => {
  const points = (space: Definition, points = {}) => {
    const study = new Study({ space, sampler: new GridSampler({ points }) });
    const out = [];
    for (let trial; (trial = study.ask());) out.push(Object.values(trial.params)[0]);
    return out;
  };
  assertEquals(points({ x: uniform(0, 1) }, { x: 5 }), [0, 0.25, 0.5, 0.75, 1]);
  assertEquals(points({ x: uniform(0, 1) }, { x: 1 }), [0.5]);
  assertEquals(points({ x: integer(1, 6, { step: 2 }) }), [1, 3, 5]);
  assertEquals(points({ x: integer(1, 64, { log: true }) }, { x: 4 }), [1, 4, 16, 64]);
  assertEquals(points({ x: integer(0, 10) }, { x: [7, 3, 7] }), [7, 3]);
  assertEquals(points({ x: choice(["a", "b"]) }), ["a", "b"]);
  const [low, middle, high] = points({ x: logUniform(1e-4, 1e-2) }, { x: 3 }) as number[];
  assert(low === 1e-4 && high === 1e-2 && Math.abs(middle - 1e-3) < 1e-15);

  const fails = (message: string, space: Definition, given = {}) =>
    assertThrows(() => points(space, given), RangeError, message);
  fails("parameter x is a number between two bounds", { x: uniform(0, 1) });
  fails("points names y, which is not in the space (x)", { x: integer(0, 1) }, { y: 3 });
  fails("parameter x cannot be 2", { x: integer(0, 1) }, { x: [2] });
  fails("at least 1 point, got 0", { x: uniform(0, 1) }, { x: 0 });
  fails("parameter x has an empty list", { x: uniform(0, 1) }, { x: [] });
  fails("is a choice", { x: choice([1, 2]) }, { x: 2 });
  fails("more than 1000000 points", { x: integer(0, 2 ** 40) });
  fails("more than 1000000 points", { x: integer(1, 2000), y: integer(1, 2000) });
});

Deno.test("tune: telling twice, reporting wrongly and foreign trials are errors", () => {
  const study = new Study({ space: { x: uniform(0, 1) } });
  const trial = study.ask()!;
  trial.report(1, 0.5);
  assertThrows(() => trial.report(1, 0.4), RangeError, "step 1 comes after step 1");
  assertThrows(() => trial.report(2.5, 0.4), RangeError, "whole number");
  assertThrows(() => study.tell(trial, undefined as never), Error, "needs a number or");
  assertThrows(() => study.tell(trial, { state: "complete" } as never), Error, "needs a number or");
  assertThrows(() => study.best(), Error, "no trial is complete (0 failed, 0 pruned, 1 running)");
  study.tell(trial, 1);
  assertThrows(() => study.tell(trial, 1), Error, "trial 0 has ended already: it is complete");
  assertThrows(() => trial.report(2, 1), Error, "report: trial 0 has ended already");
  assertThrows(() => trial.shouldPrune(), Error, "trial 0 has ended already");
  const other = new Study({ space: { x: uniform(0, 1) } });
  other.ask();
  study.ask();
  const foreign = [other.ask()!, other.ask()!];
  for (const t of foreign) assertThrows(() => study.tell(t, 1), Error, "not one that this study");
  assertThrows(
    () => new Study({ space: { x: uniform(0, 1) }, direction: "up" as never }),
    RangeError,
    "direction",
  );
  assertThrows(() => new Study({ space: { x: uniform(0, 1) }, seed: 0.5 }), RangeError, "seed");
  assertThrows(() => new TpeSampler({ startup: 0 }), RangeError, "startup");
});

Deno.test("tune: a value that is not finite is a failed trial", () => {
  const study = new Study({ space: { x: uniform(0, 1) }, direction: "maximize" });
  for (const value of [NaN, Infinity, -Infinity, 3, 5, 4]) study.tell(study.ask()!, value);
  assertEquals(study.trials.map((t) => t.state), [
    ...["failed", "failed", "failed"],
    ...["complete", "complete", "complete"],
  ]);
  assertEquals(study.trials[0].reason, "its value is NaN");
  assertEquals(study.trials[1].diverged, true);
  assertEquals(study.best().number, 4);
  const config = study.bestConfig();
  assertEquals(config, study.best().params);
  assert(config !== study.best().params);
});

Deno.test("tune: run counts, keeps its width, and gives up after five throws in a row", async () => {
  const study = new Study({ space: { x: uniform(0, 1) }, sampler: new RandomSampler() });
  let running = 0;
  let most = 0;
  const fn = async (trial: { number: number }) => {
    most = Math.max(most, ++running);
    await new Promise((done) => setTimeout(done, 1));
    running--;
    if (trial.number % 3 === 0) throw new Error("now and then");
    return 1;
  };
  assertEquals(await study.run(fn, { trials: 20, parallel: 3 }), { ended: "trials" });
  assertEquals([study.trials.length, most], [20, 3]);
  assertEquals(study.trials[3].reason, "now and then");
  await study.run(fn, { trials: 20 });
  assertEquals(study.trials.length, 20);

  const broken = () => {
    throw new TypeError("x is not a function");
  };
  const error = await assertRejects(
    () => study.run(broken, { trials: 100 }),
    Error,
    "5 trials in a row threw, the last one: x is not a function",
  );
  assert(error.cause instanceof TypeError);
  assertEquals(study.trials.length, 25);
  await assertRejects(() => study.run(() => 1), RangeError, "never ends");
  await assertRejects(() => study.run(() => 1, { trials: 9.5 }), RangeError, "trials");
  await assertRejects(
    () => study.run(() => 1, { trials: 99, parallel: 0 }),
    RangeError,
    "parallel",
  );
  await assertRejects(() => study.run(() => "a" as never, { trials: 99 }), Error, "needs a number");
  const stop = new AbortController();
  const result = await study.run((trial) => {
    if (trial.number === 40) stop.abort();
    return 1;
  }, { trials: 99, signal: stop.signal });
  assertEquals(result, { ended: "aborted" });
});

Deno.test("tune: the median pruner", () => {
  const study = new Study({
    space: { x: uniform(0, 1) },
    sampler: new RandomSampler(),
    pruner: new MedianPruner({ warmup: 2 }),
  });
  const run = (value: number) => {
    const trial = study.ask()!;
    const at: number[] = [];
    for (let step = 0; step < 5; step++) {
      trial.report(step, value);
      if (trial.shouldPrune()) at.push(step);
    }
    study.tell(trial, at.length ? { state: "pruned" } : value);
    return at[0];
  };
  // Nothing before five are complete.
  for (const value of [1, 2, 3, 4, 5]) assertEquals(run(value), undefined);
  assertEquals(run(3.1), 2); // after warm-up; the median is 3
  assertEquals(run(3), undefined); // equal is not worse
  assertEquals(run(NaN), 2);
  const trial = study.ask()!;
  assertEquals(trial.shouldPrune(), false); // no report yet
  trial.report(0, 2.5);
  trial.report(9, 100); // its best so far counts
  assertEquals(trial.shouldPrune(), false);
  assertThrows(() => new MedianPruner({ warmup: -1 }), RangeError, "warmup");
});

Deno.test("tune: successive halving", () => {
  const study = new Study({
    space: { x: uniform(0, 1) },
    direction: "maximize",
    sampler: new RandomSampler(),
    pruner: new HalvingPruner({ first: 2, factor: 2 }),
  });
  const reached: number[] = [];
  for (const value of [5, 4, 6, 5.5, 3, 7]) {
    const trial = study.ask()!;
    let step = 1;
    for (; step <= 8; step++) {
      trial.report(step, value);
      if (trial.shouldPrune()) break;
    }
    reached.push(step);
    study.tell(trial, step > 8 ? value : { state: "pruned" });
  }
  // Rungs at 2, 4 and 8; 5.5 is second of four at 2, but not the first of three at 4.
  assertEquals(reached, [9, 2, 9, 4, 2, 9]);
  assertThrows(() => new HalvingPruner({ factor: 1 }), RangeError, "factor");
});

Deno.test("tune: importance finds what matters", async () => {
  const space = {
    a: uniform(0, 1),
    b: logUniform(1e-4, 1),
    c: choice(["x", "y", "z"]),
    d: conditional(uniform(0, 1), { on: "c", is: ["x"] }),
    e: integer(1, 9),
  };
  const study = new Study({ space, sampler: new RandomSampler(), seed: 3 });
  // Variances over the space: a 4/12, b 1/12 of 2², c 2/9, d and e nothing.
  await study.run(
    ({ params: p }) => 2 * p.a + 1e-9 * p.e + (p.c === "y" ? 1 : 0) + Math.log10(p.b) / 4,
    { trials: 300 },
  );
  const parts = importance(study);
  const of = Object.fromEntries(parts.map((p) => [p.name, p.importance]));
  const total = 4 / 12 + 1 / 12 + 2 / 9;
  assert(Math.abs(of.a - 4 / 12 / total) < 0.08, `${of.a}`);
  assert(Math.abs(of.b - 1 / 12 / total) < 0.08, `${of.b}`);
  assert(Math.abs(of.c - 2 / 9 / total) < 0.08, `${of.c}`);
  assert(of.d < 0.03 && of.e < 0.03, `${of.d} ${of.e}`);
  assertEquals(parts.map((p) => p.name).slice(0, 3), ["a", "c", "b"]);
  assertEquals(importance(study), parts);

  const flat = new Study({ space, sampler: new RandomSampler() });
  await flat.run(() => 1, { trials: 3 });
  assertThrows(() => importance(flat), Error, "needs at least 4 complete trials, got 3");
  await flat.run(() => 1, { trials: 10 });
  assertEquals(importance(flat).map((p) => p.importance), [0, 0, 0, 0, 0]);
  assertThrows(() => importance(flat, { trees: 0 }), RangeError, "trees");
});

Deno.test("tune: data for plots", () => {
  const study = new Study({
    space: {
      kind: choice(["a", "b"]),
      x: conditional(uniform(0, 1), { on: "kind", is: ["b"] }),
      n: integer(1, 8, { log: true }),
    },
    sampler: new GridSampler({ points: { x: 2, n: [8] } }),
  });
  const outcomes = [3, NaN, 1];
  for (const value of outcomes) study.tell(study.ask()!, value);
  study.ask();
  assertEquals(history(study), [
    { number: 0, value: 3, best: 3 },
    { number: 2, value: 1, best: 1 },
  ]);
  assertEquals(parallelCoordinates(study), {
    axes: [
      { name: "kind", scale: "category", categories: ["a", "b"] },
      { name: "x", scale: "linear", range: [0, 1] },
      { name: "n", scale: "log", range: [1, 8] },
    ],
    lines: [
      { number: 0, places: [0, null, 8], value: 3 },
      { number: 2, places: [1, 1, 8], value: 1 },
    ],
  });
  assertEquals(slices(study).map((s) => s.points.length), [2, 1, 2]);
  assertEquals(slices(study, ["x"])[0].points, [{ number: 2, x: 1, y: 1 }]);
  assertThrows(() => slices(study, ["y" as "x"]), RangeError, "y is not in the space (kind, x, n)");
});

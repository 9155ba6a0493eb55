/** TPE's densities, splits and choices are Optuna's (tune_tpe.py). */

import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { choice, type Direction, integer, logUniform, uniform } from "@graft/ml/tune";
import type { Plain, TrialRecord, TrialState, Value } from "@graft/ml/tune";
import { forgetting, parzen } from "../../tune/samplers/parzen.ts";
import { pick, split } from "../../tune/samplers/tpe.ts";

interface Golden {
  densities: { parameter: string; seen: number[]; at: number[]; log: number[] }[];
  splits: {
    direction: Direction;
    trials: { state: TrialState; value: number | null; reports: [number, number][] }[];
    below: number[];
  }[];
  choices: {
    parameter: string;
    below: number[];
    above: number[];
    candidates: number[];
    taken: number;
  }[];
}

const golden: Golden = JSON.parse(
  await Deno.readTextFile(new URL("tune_tpe.json", import.meta.url)),
);

const letters = ["a", "b", "c"];
const parameters: Record<string, Plain> = {
  uniform: uniform(-3, 5),
  logUniform: logUniform(1e-6, 10),
  integer: integer(1, 31, { step: 3 }),
  integerLog: integer(1, 64, { log: true }),
  choice: choice(letters),
};

function estimator(name: string, seen: readonly number[]) {
  const value = (x: number): Value => name === "choice" ? letters[x] : x;
  const p = parzen(parameters[name], seen.map(value), forgetting(seen.length));
  return { p, value, logDensity: (x: number) => p.logDensity(value(x)) };
}

Deno.test("parity: TPE's densities are Optuna's", () => {
  assertEquals(golden.densities.length, 35);
  for (const { parameter, seen, at, log } of golden.densities) {
    const { logDensity } = estimator(parameter, seen);
    at.forEach((x, i) => {
      assertAlmostEquals(logDensity(x), log[i], 1e-9, `${parameter}, ${seen.length} seen, at ${x}`);
    });
  }
});

Deno.test("parity: TPE's good trials are Optuna's", () => {
  assertEquals(golden.splits.length, 4);
  for (const { direction, trials, below } of golden.splits) {
    const records = trials.map(({ state, value, reports }, number): TrialRecord => ({
      number,
      params: {},
      state,
      value: value ?? undefined,
      reports: reports.map(([step, value]) => ({ step, value })),
    }));
    const got = split(records, direction, (n) => Math.min(Math.ceil(0.1 * n), 25));
    assertEquals(got.below.map((t) => t.number), below);
    assertEquals(got.above.length, trials.length - below.length);
  }
});

Deno.test("parity: TPE takes the candidate that Optuna takes", () => {
  assertEquals(golden.choices.length, 5);
  for (const { parameter, below, above, candidates, taken } of golden.choices) {
    const [l, g] = [estimator(parameter, below), estimator(parameter, above)];
    assert(candidates.length === 24);
    assertEquals(pick(candidates.map(l.value), l.p, g.p), l.value(taken), parameter);
  }
});

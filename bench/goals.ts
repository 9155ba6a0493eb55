/**
 * What graft is meant to reach beside its peers and the machine, and what a run of the bench shows of it.
 *
 * @module
 */

import type { Case } from "./cases.ts";
import type { Measured, Outcome } from "./compare.ts";
import type { Limits } from "./limits.ts";

/** A goal, and what was measured. */
export interface Goal {
  readonly what: string;
  /** The figure that is wanted, at least or at most. */
  readonly wanted: number;
  readonly atLeast: boolean;
  readonly measured: number;
  readonly reached: boolean;
}

/** PyTorch as Debian ships it, which the goals are held against. */
const PYTORCH = "PyTorch (/usr/bin/python3)";

/** The goals for a device of which both sides were measured. */
export function goalsOf(
  device: "cpu" | "webgpu",
  outcomes: readonly Outcome[],
  limits: Limits,
): Goal[] {
  const goals: Goal[] = [];
  const find = (wanted: (c: Case) => boolean): Outcome | undefined =>
    outcomes.find((o) => wanted(o.case));
  const step = (gpt: string, method: string): Outcome | undefined =>
    find((c) => c.kind === "step" && c.gpt === gpt && c.method === method);
  const add = (what: string, wanted: number, measured: number | null, atLeast = true): void => {
    if (measured === null) return;
    const reached = atLeast ? measured >= wanted : measured <= wanted;
    goals.push({ what, wanted, atLeast, measured, reached });
  };
  const cpu = device === "cpu";

  const square = find(({ kind, sizes: { batch, m, n, k, turned } }) =>
    kind === "matmul" && batch === 1 && m === 1024 && n === m && k === m && turned === 0
  );
  const peers = ["jax-js", "tfjs"];
  add(
    "matrix product 1024³, the faster JavaScript peer's time to ours",
    cpu ? 3.5 : 2.5,
    times(square, peers),
  );

  const rival = cpu ? ["jax-js"] : peers;
  const whose = cpu ? "jax-js's time to ours" : "the faster peer's time to ours";
  add(`step, 4 layers, all weights, ${whose}`, 3, times(step("small", "full"), rival));
  add(`step, 4 layers, LoRA, ${whose}`, cpu ? 5 : 3, times(step("small", "lora"), rival));
  add("step, 4 layers, LoRA, PyTorch's time to ours", 1, times(step("small", "lora"), [PYTORCH]));
  add(`step, 6 layers, LoRA, ${whose}`, 10, times(step("large", "lora"), rival));
  add("step, 6 layers, LoRA, PyTorch's time to ours", 1, times(step("large", "lora"), [PYTORCH]));

  for (const [gpt, layers] of [["small", 4], ["large", 6]] as const) {
    for (const [method, of] of [["full", "all weights"], ["lora", "LoRA"]] as const) {
      const outcome = step(gpt, method);
      const label = `${layers} layers, ${of}`;
      add(`first step, ${label}, ${whose}`, cpu ? 3 : 2, times(outcome, rival, (m) => m.first));
      const own = measured(outcome, "graft");
      add(`host's share of a step, ${label}`, 0.03, own?.host ? own.host / own.ms : null, false);
    }
    const [lora, full] = ["lora", "full"].map((m) => measured(step(gpt, m), "graft"));
    add(
      `LoRA's step to that of all weights, ${layers} layers`,
      0.72,
      lora && full ? lora.ms / full.ms : null,
      false,
    );
  }

  const decode = find(({ kind }) => kind === "decode");
  const own = measured(decode, "graft");
  const bandwidth = Math.max(limits.read, limits.copied);
  add(
    "decoding stories15M, batch 1, to what memory allows",
    0.6,
    decode && own ? 1000 * decode.case.bytes / bandwidth / own.ms : null,
  );
  return goals;
}

function measured(outcome: Outcome | undefined, label: string): Measured | null {
  const found = outcome?.sides.get(label);
  return found === undefined || typeof found === "string" ? null : found;
}

/** The least time of `peers` as a multiple of graft's; null where either is missing. */
function times(
  outcome: Outcome | undefined,
  peers: readonly string[],
  of: (m: Measured) => number = (m) => m.ms,
): number | null {
  const own = measured(outcome, "graft");
  const found = peers.flatMap((label) => measured(outcome, label) ?? []);
  if (own === null || found.length === 0) return null;
  return Math.min(...found.map(of)) / of(own);
}

/**
 * The table of results, in Markdown.
 *
 * @module
 */

import type { Measured, Outcome } from "./compare.ts";
import { disagreements } from "./compare.ts";
import { type Goal, goalsOf } from "./goals.ts";
import type { Limits } from "./limits.ts";

/** All that is told. */
export interface Report {
  readonly device: "cpu" | "webgpu";
  readonly about: string;
  readonly outcomes: readonly Outcome[];
  readonly limits: Limits;
  /** The load of the machine after each case. */
  readonly loads: readonly number[];
  /** What each side calls itself. */
  readonly names: ReadonlyMap<string, string>;
  readonly threads: number;
  readonly seconds: number;
  /** Path of the plot, which lies beside the text. */
  readonly image: string;
}

/** Milliseconds with three digits. */
export function shownMs(ms: number): string {
  return ms >= 100 ? ms.toFixed(0) : ms.toPrecision(3);
}

/** The least time that a case can take, in milliseconds; null where none is told. */
export function limitOf({ case: work }: Outcome, { flops, read, copied }: Limits): number | null {
  const ms = 1000 * Math.max(work.flops / flops, work.bytes / Math.max(read, copied));
  return ms > 0 ? ms : null;
}

/** A side's figures, where it has them. */
export function figuresOf({ sides }: Outcome, label: string): Measured | null {
  const found = sides.get(label);
  return found === undefined || found === null || typeof found === "string" ? null : found;
}

/** The text of results.md. */
export function resultsOf(report: Report): string {
  const { about, outcomes, limits, loads, names, threads, seconds, image } = report;
  const groups = [...new Set(outcomes.map((o) => o.case.group))];
  const peers = [...names.keys()].filter((label) => label !== "graft");
  const worst = Math.max(...loads);
  return [
    "# Results of `deno task bench`",
    "",
    "```",
    about,
    `sides:   ${[...names.values()].join("; ")}`,
    `threads: ${threads}`,
    `took:    ${(seconds / 60).toFixed(1)} min; highest load of a minute on the way ${
      worst.toFixed(1)
    }`,
    "```",
    "",
    `Limits, measured by the same command on graft's own threads: ${
      (limits.flops / 1e9).toFixed(1)
    } GFLOP/s of multiply-adds on vectors of four; ${(limits.read / 1e9).toFixed(1)} GB/s read, ${
      (limits.copied / 1e9).toFixed(1)
    } GB/s read and written by a copy. A library with wider vectors can pass the first.`,
    "",
    "A time is the median of the samples, in milliseconds, with the least and the most of them; " +
    "beside a peer's stands how many times as long as graft it takes. All sides took turns.",
    "",
    `![times beside graft's](./${image.split("/").at(-1)})`,
    ...groups.flatMap((group) => ["", ...table(group, outcomes, limits, names, peers)]),
    ...firstSteps(outcomes, names),
    ...goals(goalsOf(report.device, outcomes, limits)),
    ...notes(outcomes, names),
    "",
  ].join("\n");
}

function row(cells: readonly string[]): string {
  return `| ${cells.join(" | ")} |`;
}

function spread(m: Measured): string {
  return `${shownMs(m.ms)} (${shownMs(m.low)}–${shownMs(m.high)})`;
}

function table(
  group: string,
  all: readonly Outcome[],
  limits: Limits,
  names: ReadonlyMap<string, string>,
  peers: readonly string[],
): string[] {
  const outcomes = all.filter((o) => o.case.group === group);
  const rate = outcomes.some((o) => o.case.tokens);
  const head = [
    "",
    names.get("graft") ?? "graft",
    "limit: ms, reached",
    ...(rate ? ["tokens a second"] : []),
    ...peers.map((label) => names.get(label)!),
  ];
  const rows = outcomes.map((outcome) => {
    const own = figuresOf(outcome, "graft");
    const limit = limitOf(outcome, limits);
    const { tokens } = outcome.case;
    return row([
      outcome.case.name,
      own ? `**${shownMs(own.ms)}** (${shownMs(own.low)}–${shownMs(own.high)})` : "fails",
      limit === null
        ? ""
        : `${shownMs(limit)}, ${own ? `${(100 * limit / own.ms).toFixed(0)} %` : "–"}`,
      ...(rate ? [tokens && own ? (1000 * tokens / own.ms).toFixed(0) : ""] : []),
      ...peers.map((label) => {
        const found = outcome.sides.get(label);
        if (found === null || found === undefined) return "–";
        if (typeof found === "string") return "fails";
        return spread(found) + (own ? `, ${(found.ms / own.ms).toFixed(2)} ×` : "");
      }),
    ]);
  });
  return [`## ${group}`, "", row(head), row(head.map((_, i) => i === 0 ? "---" : "---:")), ...rows];
}

/** What it takes until a step is done for the first time. */
function firstSteps(outcomes: readonly Outcome[], names: ReadonlyMap<string, string>): string[] {
  const steps = outcomes.filter(({ case: { kind } }) => kind === "step" || kind === "stories");
  if (steps.length === 0) return [];
  const labels = [...names.keys()];
  const rows = steps.map((outcome) => {
    const own = figuresOf(outcome, "graft");
    return row([
      outcome.case.name,
      ...labels.map((label) => {
        const found = figuresOf(outcome, label);
        if (!found) return "–";
        const times = label === "graft" || !own
          ? ""
          : `, ${(found.first / own.first).toFixed(2)} ×`;
        return shownMs(found.first) + times;
      }),
    ]);
  });
  const head = ["", ...labels.map((label) => names.get(label)!)];
  return [
    "",
    "## First step",
    "",
    "Milliseconds to make the model and take its first step, compilation included, in a process that " +
    "has loaded the library.",
    "",
    row(head),
    row(head.map((_, i) => i === 0 ? "---" : "---:")),
    ...rows,
  ];
}

/** What was to be reached, and what was. */
function goals(all: readonly Goal[]): string[] {
  if (all.length === 0) return [];
  const rows = all.map(({ what, wanted, atLeast, measured, reached }) =>
    row([what, `${atLeast ? "≥" : "≤"} ${wanted}`, measured.toPrecision(3), reached ? "yes" : "no"])
  );
  return [
    "",
    "## Goals",
    "",
    "The host's share is what graft takes to record a step, find its plan and submit it.",
    "",
    row(["", "goal", "measured", "reached"]),
    row(["---", "---:", "---:", "---"]),
    ...rows,
  ];
}

/** Sides that failed, and those that computed something else. */
function notes(outcomes: readonly Outcome[], names: ReadonlyMap<string, string>): string[] {
  const lines = outcomes.flatMap(({ case: work, sides }) =>
    [...sides].filter(([, m]) => typeof m === "string")
      .map(([label, m]) => `- ${names.get(label) ?? label}, ${work.name}: ${m}`)
  );
  const wrong = outcomes.flatMap(disagreements).map((text) => `- ${text}`);
  return [
    ...(lines.length > 0 ? ["", "## What fails", "", ...lines] : []),
    ...(wrong.length > 0 ? ["", "## What does not agree", "", ...wrong] : []),
    "",
    wrong.length === 0
      ? "Values of all sides agree with graft's: results of single ops, losses of the first steps, tokens."
      : "All other values agree with graft's.",
  ];
}

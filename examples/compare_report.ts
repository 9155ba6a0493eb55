/**
 * What a comparison of methods has shown: as a table, in words, and as a page that opens offline.
 *
 * @module
 */

import { chart, charts, escape, htmlTable, page, type Series, writeWhole } from "./charts.ts";
import type { Method } from "./settings.ts";
import type { Losses, Outcome } from "./train.ts";

/** A run of one method at one learning rate. */
export type CompareRun =
  & { readonly method: Method; readonly lr: number }
  & (Finished | { readonly failed: string });

interface Finished extends Pick<Outcome, "trainable" | "total" | "peakBytes" | "seconds"> {
  /** Of the model without what is trained. */
  readonly base: Losses;
  readonly last: Losses;
  /** Held-out loss by step. */
  readonly points: readonly (readonly [step: number, loss: number])[];
}

/** A run that has come to its end. */
type Run = Extract<CompareRun, Finished>;

/** All runs, in the order of the methods. */
export interface Comparison {
  readonly date: string;
  readonly command: string;
  readonly runs: readonly CompareRun[];
}

/** How near LoRA has to come to training all, in nats a token. */
const NEAR = 0.05;

const NAMES: Readonly<Record<Method, string>> = {
  "lora": "LoRA",
  "dora": "DoRA",
  "prompt": "the soft prompt",
  "ptuning-v2": "P-tuning v2",
  "full": "training all",
};

const COLORS: Readonly<Record<Method, string>> = {
  "lora": "#2563eb",
  "dora": "#059669",
  "prompt": "#d97706",
  "ptuning-v2": "#7c3aed",
  "full": "#dc2626",
};

/** Each method at its best learning rate. */
export function best({ runs }: Comparison): Run[] {
  const byMethod = new Map<Method, Run>();
  for (const run of runs) {
    if ("failed" in run) continue;
    const other = byMethod.get(run.method);
    if (!other || run.last.eval_loss < other.last.eval_loss) byMethod.set(run.method, run);
  }
  return [...byMethod.values()];
}

const HEAD = [
  "method",
  "learning rate",
  "trained",
  "share",
  "peak MiB",
  "seconds",
  "task before",
  "task after",
  "general before",
  "general after",
  "forgetting",
];

function rowsOf(comparison: Comparison): string[][] {
  return best(comparison).map((run) => [
    run.method,
    `${run.lr}`,
    run.trainable.toLocaleString("en-US"),
    `${(100 * run.trainable / run.total).toPrecision(3)} %`,
    (run.peakBytes / 2 ** 20).toFixed(0),
    run.seconds.toFixed(0),
    run.base.eval_loss.toFixed(3),
    run.last.eval_loss.toFixed(3),
    run.base.general_loss.toFixed(3),
    run.last.general_loss.toFixed(3),
    signed(forgetting(run)),
  ]);
}

/** How much the loss on general text has risen. */
function forgetting({ base, last }: Run): number {
  return last.general_loss - base.general_loss;
}

/** The methods at their best, one a line. */
export function table(comparison: Comparison): string {
  const all = [HEAD, ...rowsOf(comparison)];
  const widths = HEAD.map((_, c) => Math.max(...all.map((row) => row[c].length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, c) => c === 0 ? cell.padEnd(widths[c]) : cell.padStart(widths[c])).join("  ");
  return [line(HEAD), widths.map((w) => "-".repeat(w)).join("  "), ...all.slice(1).map(line)]
    .join("\n");
}

/** What the table says of the two goals, and where one is missed, what in the numbers explains it. */
export function inWords(comparison: Comparison): string[] {
  const of = (method: Method): Run | undefined =>
    best(comparison).find((run) => run.method === method);
  const lines: string[] = [];
  for (const method of new Set(comparison.runs.map((run) => run.method))) {
    if (!of(method)) lines.push(`No run of ${method} came to an end: its loss was not a number.`);
  }
  const [lora, full, prefix, prompt] = [of("lora"), of("full"), of("ptuning-v2"), of("prompt")];
  if (lora && full) {
    const gap = lora.last.eval_loss - full.last.eval_loss;
    lines.push(
      `${sideBySide(lora, full)} The goal is to come within ${NEAR}: ` +
        (gap <= NEAR ? "reached." : `missed.${reasons(comparison, lora, full)}`),
    );
  }
  if (prefix && prompt) {
    const better = prefix.last.eval_loss < prompt.last.eval_loss;
    lines.push(
      `${sideBySide(prefix, prompt)} The goal is to be better: ` +
        (better ? "reached." : `missed.${reasons(comparison, prefix, prompt)}`),
    );
  }
  return lines;
}

function sideBySide(one: Run, other: Run): string {
  const gap = one.last.eval_loss - other.last.eval_loss;
  return `${capital(NAMES[one.method])} ends at ${one.last.eval_loss.toFixed(3)} nats a token, ` +
    `${NAMES[other.method]} at ${other.last.eval_loss.toFixed(3)}: ` +
    `${Math.abs(gap).toFixed(3)} ${gap > 0 ? "more" : "less"}.`;
}

/** What speaks for a gap between two runs being one of settings, of time, or of what is trained. */
function reasons(comparison: Comparison, behind: Run, ahead: Run): string {
  const found: string[] = [];
  for (const run of [behind, ahead]) {
    const edge = edgeOf(comparison, run);
    if (edge) {
      found.push(
        `the best rate of ${
          NAMES[run.method]
        }, ${run.lr}, is the ${edge} tried, so it may have a ` +
          "better one (--lrs)",
      );
    }
  }
  const [late, other] = [lateFall(behind), lateFall(ahead)];
  const gap = behind.last.eval_loss - ahead.last.eval_loss;
  if (late !== null && other !== null && late > other) {
    const share = Math.min(1, (late - other) / gap);
    found.push(
      `${NAMES[behind.method]} still falls faster (${late.toFixed(3)} in the second half, ` +
        `${NAMES[ahead.method]} ${other.toFixed(3)}): as much again would close ` +
        `${(100 * share).toFixed(0)} % of the gap (--steps)`,
    );
  } else if (late !== null && other !== null) {
    found.push(
      `it does not catch up: ${late.toFixed(3)} in the second half, ${NAMES[ahead.method]} ` +
        `${other.toFixed(3)}`,
    );
  }
  if (behind.trainable < ahead.trainable) {
    found.push(
      `it trains ${
        (ahead.trainable / behind.trainable).toFixed(0)
      } times fewer parameters, and its ` +
        `loss on general text moved by ${signed(forgetting(behind))} where that of ` +
        `${NAMES[ahead.method]} moved by ${signed(forgetting(ahead))}`,
    );
  }
  return found.length === 0 ? "" : ` What the numbers say of it: ${found.join("; ")}.`;
}

/** Whether a run's learning rate is at an end of those that were tried. */
function edgeOf({ runs }: Comparison, { method, lr }: Run): string | null {
  const tried = runs.filter((run) => run.method === method).map((run) => run.lr);
  if (tried.length === 1) return "only one";
  if (lr === Math.max(...tried)) return "highest";
  return lr === Math.min(...tried) ? "lowest" : null;
}

/** How far the held-out loss fell after the last evaluation but one. */
function lateFall({ points }: Run): number | null {
  return points.length < 3 ? null : points.at(-2)![1] - points.at(-1)![1];
}

/** Writes `compare.json` and `compare.html` into `out`. */
export async function writeComparison(out: string, comparison: Comparison): Promise<void> {
  const runs = best(comparison);
  await writeWhole(
    `${out}/compare.json`,
    `${JSON.stringify({ ...comparison, words: inWords(comparison) }, null, 2)}\n`,
  );
  const categories = runs.map((run) => run.method);
  const bars = (title: string, value: (run: Run) => number, color: string, log = false): string =>
    chart(title, [{
      name: title,
      kind: "bar",
      color,
      points: runs.map((run, i) => [i, value(run)] as const),
    }], { x: { categories }, y: { log } });
  const byRate = categories.map((method): Series => ({
    name: method,
    color: COLORS[method],
    marks: true,
    points: comparison.runs.flatMap((run) =>
      run.method === method && !("failed" in run) ? [[run.lr, run.last.eval_loss] as const] : []
    ),
  }));
  const figures = [
    chart(
      "Held-out loss by step (nats a token)",
      runs.map((run): Series => ({
        name: run.method,
        color: COLORS[run.method],
        marks: true,
        points: run.points,
      })),
    ),
    chart("Held-out loss by learning rate (nats a token)", byRate, {
      x: { name: "learning rate", log: true },
    }),
    bars("Held-out loss after (nats a token)", (run) => run.last.eval_loss, "#2563eb"),
    bars("Forgetting: rise of the loss on general text", forgetting, "#7c3aed"),
    bars("Trained parameters", (run) => run.trainable, "#059669", true),
    bars("Peak memory (MiB)", (run) => run.peakBytes / 2 ** 20, "#d97706"),
    bars("Time of the steps (s)", (run) => run.seconds, "#475569"),
  ];
  const body = [
    `<p>${escape(comparison.date)}: <code>${escape(comparison.command)}</code></p>`,
    htmlTable(rowsOf(comparison), HEAD),
    ...inWords(comparison).map((line) => `<p>${escape(line)}</p>`),
    charts(figures),
  ];
  await writeWhole(`${out}/compare.html`, page("Methods compared", body.join("\n")));
}

function signed(value: number): string {
  return `${value < 0 ? "" : "+"}${value.toFixed(3)}`;
}

function capital(text: string): string {
  return text[0].toUpperCase() + text.slice(1);
}

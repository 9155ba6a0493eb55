/**
 * Draws what a run wrote: `report.html` from `metrics.jsonl` (and `samples.json` where it is there).
 * The page holds its curves as inline SVG and opens offline.
 *
 *     deno run -A examples/report.ts DIR
 *
 * Left out: comparing several runs.
 */
import { chart, charts, escape, htmlTable, page, shown, writeWhole } from "./charts.ts";

/** One line of metrics.jsonl. */
interface Metrics {
  step?: number;
  loss?: number;
  learning_rate?: number;
  grad_norm?: number;
  tokens_per_second?: number;
  eval_loss?: number;
  general_loss?: number;
  summary?: Record<string, unknown>;
}

/** One entry of samples.json. */
interface Sample {
  prompt: string;
  before: string;
  after: string;
}

/**
 * Writes `report.html` into a run's folder, beside the `metrics.jsonl` it is drawn from.
 *
 * @returns the report's path.
 * @throws Error if a file cannot be read or a line is not JSON; the message names file and line.
 */
export async function writeReport(dir: string): Promise<string> {
  const metrics = await readMetrics(`${dir}/metrics.jsonl`);
  const samples = await readSamples(`${dir}/samples.json`);
  const summary = metrics.findLast((line) => line.summary !== undefined)?.summary ?? {};

  const of = (key: keyof Metrics): [number, number][] =>
    metrics.flatMap((line) => {
      const value = line[key];
      return typeof line.step === "number" && typeof value === "number" ? [[line.step, value]] : [];
    });
  const figures = [
    chart("Loss (nats a token)", [
      { name: "training, smoothed", points: smoothed(of("loss")), color: "#2563eb" },
      { name: "training", points: of("loss"), color: "#93c5fd", thin: true },
      { name: "held out", points: of("eval_loss"), color: "#dc2626", marks: true },
    ]),
    chart("Loss on general text (nats a token)", [
      { name: "general text", points: of("general_loss"), color: "#7c3aed", marks: true },
    ]),
    chart("Learning rate", [
      { name: "learning rate", points: of("learning_rate"), color: "#059669" },
    ]),
    chart("Gradient norm", [
      { name: "gradient norm", points: of("grad_norm"), color: "#d97706" },
    ]),
    chart("Tokens per second", [
      { name: "tokens per second", points: of("tokens_per_second"), color: "#475569" },
    ]),
  ];

  const rows = Object.entries(summary).map((
    [key, value],
  ) => [key.replaceAll("_", " "), shown(value)]);
  const body = [
    rows.length > 0 ? `<h2>Summary</h2>\n${htmlTable(rows)}` : "",
    "<h2>Curves</h2>",
    charts(figures) || "<p>No step was taken.</p>",
    samples.length > 0 ? "<h2>Samples</h2>" : "",
    ...samples.map(compared),
  ];
  const path = `${dir}/report.html`;
  await writeWhole(path, page("Training report", body.join("\n")));
  return path;
}

async function readMetrics(path: string): Promise<Metrics[]> {
  const lines: Metrics[] = [];
  for (const [index, line] of (await Deno.readTextFile(path)).split("\n").entries()) {
    if (line.trim() === "") continue;
    try {
      lines.push(JSON.parse(line));
    } catch (error) {
      throw new Error(`report: ${path}, line ${index + 1} is not JSON: ${error}`);
    }
  }
  return lines;
}

async function readSamples(path: string): Promise<Sample[]> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
  const samples: unknown = JSON.parse(text);
  const list = Array.isArray(samples) ? samples : [samples];
  return list.map((sample) => ({ prompt: "", before: "", after: "", ...sample }));
}

/** An exponential average, corrected for its start: the curve under the noise of single batches. */
function smoothed(points: [number, number][]): [number, number][] {
  const keep = Math.min(0.9, Math.max(0, 1 - 20 / points.length));
  let sum = 0, weight = 0;
  return points.map(([step, value]) => {
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return [step, sum / weight];
  });
}

/** Texts before and after training, side by side. */
function compared({ prompt, before, after }: Sample): string {
  return `<h3>${escape(prompt || "(no prompt)")}</h3>
<div class="pair"><div><h4>before</h4><pre>${escape(before)}</pre></div>
<div><h4>after</h4><pre>${escape(after)}</pre></div></div>`;
}

if (import.meta.main) {
  if (Deno.args.length !== 1) {
    console.error("usage: deno run -A examples/report.ts DIR");
    Deno.exit(2);
  }
  console.log(await writeReport(Deno.args[0]));
}

/**
 * Draws what a run wrote: `report.html` from `metrics.jsonl` (and `samples.json` where it is there).
 * The page holds its curves as inline SVG and opens offline.
 *
 *     deno run -A examples/report.ts DIR
 *
 * Left out: comparing several runs.
 */
import * as echarts from "echarts/core";
import { LineChart } from "echarts/charts";
import { GridComponent, LegendComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";

echarts.use([LineChart, GridComponent, LegendComponent, SVGRenderer]);

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
  const charts = [
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

  const path = `${dir}/report.html`;
  const temporary = `${path}.tmp`;
  try {
    await Deno.writeTextFile(temporary, page(charts.join("\n"), summary, samples));
    await Deno.rename(temporary, path);
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
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

interface Line {
  name: string;
  points: [step: number, value: number][];
  color: string;
  thin?: boolean;
  marks?: boolean;
}

/** A chart as an SVG element, or nothing where there is nothing to draw. */
function chart(title: string, lines: Line[]): string {
  const drawn = lines.filter((line) => line.points.length > 0);
  if (drawn.length === 0) return "";
  const instance = echarts.init(null, null, {
    renderer: "svg",
    ssr: true,
    width: 640,
    height: 300,
  });
  instance.setOption({
    animation: false,
    textStyle: { fontFamily: "system-ui, sans-serif" },
    grid: { left: 72, right: 24, top: 36, bottom: 44 },
    legend: {
      show: drawn.length > 1,
      top: 4,
      right: 24,
      itemGap: 32,
      data: drawn.map((line) => line.name),
    },
    xAxis: {
      type: "value",
      name: "step",
      nameLocation: "middle",
      nameGap: 28,
      min: "dataMin",
      max: "dataMax",
      splitLine: { show: false },
    },
    yAxis: {
      type: "value",
      scale: true,
      axisLabel: { formatter: (value: number) => String(Number(value.toPrecision(4))) },
      splitLine: { lineStyle: { color: "#e5e7eb" } },
    },
    // The first line is the one to look at: drawn last, on top.
    series: drawn.map((line, index) => ({
      type: "line",
      name: line.name,
      data: line.points,
      z: drawn.length - index + (line.marks ? 10 : 0),
      color: line.color,
      showSymbol: line.marks ?? false,
      symbolSize: 7,
      lineStyle: { width: line.thin ? 1 : 2 },
    })),
  });
  const svg = instance.renderToSVGString();
  instance.dispose(); // its clock would keep the process alive
  return `<figure><figcaption>${escape(title)}</figcaption>${svg}</figure>`;
}

function page(charts: string, summary: Record<string, unknown>, samples: Sample[]): string {
  const rows = Object.entries(summary).map(([key, value]) =>
    `<tr><th>${escape(key.replaceAll("_", " "))}</th><td>${escape(shown(value))}</td></tr>`
  );
  const compared = samples.map(({ prompt, before, after }) =>
    `<h3>${escape(prompt || "(no prompt)")}</h3>
<div class="pair"><div><h4>before</h4><pre>${escape(before)}</pre></div>
<div><h4>after</h4><pre>${escape(after)}</pre></div></div>`
  );
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training report</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #111827; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
  .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 1rem; }
  figure { margin: 0; border: 1px solid #e5e7eb; border-radius: 6px; padding: .75rem; }
  figcaption { font-weight: 600; }
  svg { width: 100%; height: auto; }
  table { border-collapse: collapse; }
  th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #e5e7eb; text-align: left; }
  th { font-weight: 400; color: #4b5563; }
  td { font-variant-numeric: tabular-nums; }
  .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem; }
  h4 { margin: 0; color: #4b5563; font-weight: 400; }
  pre { white-space: pre-wrap; background: #f9fafb; border-radius: 6px; padding: .75rem; margin: .25rem 0; }
</style>
</head>
<body>
<h1>Training report</h1>
${rows.length > 0 ? `<h2>Summary</h2>\n<table>\n${rows.join("\n")}\n</table>` : ""}
<h2>Curves</h2>
${charts.trim() === "" ? "<p>No step was taken.</p>" : `<div class="charts">\n${charts}\n</div>`}
${compared.length > 0 ? `<h2>Samples</h2>\n${compared.join("\n")}` : ""}
</body>
</html>
`;
}

function shown(value: unknown): string {
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  return Number.isInteger(value) ? value.toLocaleString("en-US") : String(+value.toPrecision(5));
}

function escape(text: string): string {
  const entities: Record<string, string> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&#39;",
  };
  return text.replace(/[&<>"']/g, (character) => entities[character]);
}

if (import.meta.main) {
  if (Deno.args.length !== 1) {
    console.error("usage: deno run -A examples/report.ts DIR");
    Deno.exit(2);
  }
  console.log(await writeReport(Deno.args[0]));
}

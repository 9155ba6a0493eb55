/**
 * Charts as inline SVG, and the page they stand on, which opens offline.
 *
 * @module
 */
import * as echarts from "echarts/core";
import { BarChart, LineChart, ParallelChart, ScatterChart } from "echarts/charts";
import {
  GridComponent,
  LegendComponent,
  ParallelComponent,
  VisualMapComponent,
} from "echarts/components";
import { SVGRenderer } from "echarts/renderers";

echarts.use([
  BarChart,
  LineChart,
  ParallelChart,
  ScatterChart,
  GridComponent,
  LegendComponent,
  ParallelComponent,
  VisualMapComponent,
  SVGRenderer,
]);

/** What is drawn in one colour. */
export interface Series {
  readonly name: string;
  /** On a category axis x is the category's index. */
  readonly points: readonly (readonly [x: number, y: number])[];
  readonly color: string;
  /** Default "line". */
  readonly kind?: "line" | "scatter" | "bar";
  /** A line of half the width. */
  readonly thin?: boolean;
  /** A line with a mark at each point. */
  readonly marks?: boolean;
}

/** An axis; its scale is linear by default. */
export interface AxisOptions {
  readonly name?: string;
  readonly log?: boolean;
  /** A category axis, with these. */
  readonly categories?: readonly string[];
}

/** A chart as a figure with an SVG; nothing where there is nothing to draw. */
export function chart(
  title: string,
  series: readonly Series[],
  axes: { readonly x?: AxisOptions; readonly y?: AxisOptions } = {},
): string {
  const drawn = series.filter((one) => one.points.length > 0);
  if (drawn.length === 0) return "";
  const { x = { name: "step" }, y = {} } = axes;
  return figure(title, {
    grid: { left: 72, right: 24, top: 36, bottom: 44 },
    legend: {
      show: drawn.length > 1,
      top: 4,
      right: 24,
      itemGap: 32,
      data: drawn.map((one) => one.name),
    },
    xAxis: {
      ...axis(x),
      nameGap: 28,
      ...(x.categories ? {} : { min: "dataMin", max: "dataMax" }),
      splitLine: { show: false },
    },
    yAxis: {
      ...axis(y),
      nameGap: 52,
      scale: !drawn.some((one) => one.kind === "bar"),
      splitLine: { lineStyle: { color: "#e5e7eb" } },
    },
    // The first is the one to look at: drawn last, on top.
    series: drawn.map(({ name, points, color, kind = "line", thin, marks }, index) => ({
      type: kind,
      name,
      data: points,
      z: drawn.length - index + (marks ? 10 : 0),
      color,
      showSymbol: marks ?? false,
      symbolSize: 7,
      lineStyle: { width: thin ? 1 : 2 },
    })),
  });
}

/** One axis of {@linkcode parallelChart}. */
export interface ParallelAxis extends AxisOptions {
  readonly name: string;
  readonly range?: readonly [low: number, high: number];
}

/** Each row as a line across all axes, coloured by its last place; null where it has none. */
export function parallelChart(
  title: string,
  axes: readonly ParallelAxis[],
  rows: readonly (readonly (number | null)[])[],
): string {
  if (rows.length === 0) return "";
  const last = axes.length - 1;
  const values = rows.map((row) => row[last]!);
  return figure(title, {
    parallel: { left: 48, right: 80, top: 48, bottom: 24 },
    parallelAxis: axes.map(({ name, log, categories, range }, dim) => ({
      dim,
      name,
      type: categories ? "category" : log ? "log" : "value",
      ...(categories ? { data: categories } : {}),
      ...(range ? { min: range[0], max: range[1] } : { scale: true }),
      axisLabel: { formatter: label, ...(categories ? wrapped(96) : {}) },
    })),
    visualMap: {
      show: false,
      dimension: last,
      min: Math.min(...values),
      max: Math.max(...values),
      inRange: { color: ["#2563eb", "#d1d5db", "#dc2626"] },
    },
    series: [{ type: "parallel", data: rows, lineStyle: { width: 1.5, opacity: 0.8 } }],
  });
}

function axis({ name, log, categories }: AxisOptions): Record<string, unknown> {
  return {
    type: categories ? "category" : log ? "log" : "value",
    ...(categories ? { data: categories } : {}),
    name,
    nameLocation: "middle",
    axisLabel: { formatter: label, ...(categories ? wrapped(440 / categories.length) : {}) },
  };
}

/** Numbers without the digits that arithmetic leaves behind; lists may be broken into lines. */
function label(value: number | string): string {
  return typeof value === "number"
    ? String(Number(value.toPrecision(4)))
    : value.replaceAll(/,(?=\S)/g, ", ");
}

/** Every category has its label, whatever its length. */
function wrapped(width: number): Record<string, unknown> {
  return { interval: 0, width, overflow: "break" };
}

function figure(title: string, option: Record<string, unknown>): string {
  const instance = echarts.init(null, null, {
    renderer: "svg",
    ssr: true,
    width: 640,
    height: 300,
  });
  instance.setOption({
    animation: false,
    textStyle: { fontFamily: "system-ui, sans-serif" },
    ...option,
  });
  const svg = instance.renderToSVGString();
  instance.dispose(); // its clock would keep the process alive
  return `<figure><figcaption>${escape(title)}</figcaption>${svg}</figure>`;
}

/** Figures side by side. */
export function charts(figures: readonly string[]): string {
  const drawn = figures.filter((one) => one !== "");
  return drawn.length === 0 ? "" : `<div class="charts">\n${drawn.join("\n")}\n</div>`;
}

/** A table; the first row of cells is the head where `head` is given. Cells are plain text. */
export function htmlTable(
  rows: readonly (readonly string[])[],
  head?: readonly string[],
): string {
  const line = (cells: readonly string[], tag: string): string =>
    `<tr>${
      cells.map((cell, i) => {
        const name = i === 0 ? "th" : tag;
        return `<${name}>${escape(cell)}</${name}>`;
      }).join("")
    }</tr>`;
  const lines = [...(head ? [line(head, "th")] : []), ...rows.map((row) => line(row, "td"))];
  return `<table>\n${lines.join("\n")}\n</table>`;
}

/** A whole page; `body` is HTML, `title` plain text. */
export function page(title: string, body: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(title)}</title>
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
<h1>${escape(title)}</h1>
${body}
</body>
</html>
`;
}

/** Writes a file beside its place, then moves it there. */
export async function writeWhole(path: string, text: string): Promise<void> {
  const temporary = `${path}.tmp`;
  try {
    await Deno.writeTextFile(temporary, text);
    await Deno.rename(temporary, path);
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
}

/** A figure of a summary, in words. */
export function shown(value: unknown): string {
  if (typeof value !== "number") return typeof value === "string" ? value : JSON.stringify(value);
  return Number.isInteger(value) ? value.toLocaleString("en-US") : String(+value.toPrecision(5));
}

/** Plain text as HTML. */
export function escape(text: string): string {
  const entities: Record<string, string> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&#39;",
  };
  return text.replace(/[&<>"']/g, (character) => entities[character]);
}

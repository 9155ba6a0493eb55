/**
 * The plot: how long each side takes beside graft, case by case.
 *
 * @module
 */

import * as echarts from "echarts/core";
import { ScatterChart } from "echarts/charts";
import { GridComponent, LegendComponent, MarkLineComponent } from "echarts/components";
import { SVGRenderer } from "echarts/renderers";
import type { Outcome } from "./compare.ts";
import { figuresOf } from "./results.ts";

echarts.use([ScatterChart, GridComponent, LegendComponent, MarkLineComponent, SVGRenderer]);

const COLORS = ["#d97706", "#7c3aed", "#dc2626", "#059669", "#475569"];

/** An SVG with a line for each case; to the right of 1, graft is faster. */
export function plot(outcomes: readonly Outcome[], names: ReadonlyMap<string, string>): string {
  const drawn = outcomes.filter((o) => figuresOf(o, "graft"));
  const peers = [...names.keys()].filter((label) => label !== "graft");
  const series = peers.map((label, i) => ({
    type: "scatter",
    name: names.get(label),
    color: COLORS[i % COLORS.length],
    symbolSize: 9,
    data: drawn.flatMap((outcome, y) => {
      const other = figuresOf(outcome, label);
      return other ? [[other.ms / figuresOf(outcome, "graft")!.ms, y]] : [];
    }),
    markLine: {
      silent: true,
      symbol: "none",
      label: { formatter: "graft" },
      lineStyle: { color: "#2563eb", type: "solid" },
      data: [{ xAxis: 1 }],
    },
  }));
  const instance = echarts.init(null, null, {
    renderer: "svg",
    ssr: true,
    width: 1000,
    height: 110 + 22 * drawn.length,
  });
  instance.setOption({
    animation: false,
    backgroundColor: "#ffffff",
    textStyle: { fontFamily: "system-ui, sans-serif" },
    grid: { left: 440, right: 40, top: 50, bottom: 50 },
    legend: { top: 8, left: 440 },
    xAxis: {
      type: "log",
      name: "times as long as graft",
      nameLocation: "middle",
      nameGap: 28,
    },
    yAxis: {
      type: "category",
      data: drawn.map((o) => o.case.name),
      inverse: true,
      axisLabel: { width: 420, overflow: "truncate" },
      splitLine: { show: true, lineStyle: { color: "#f3f4f6" } },
    },
    series,
  });
  const svg = instance.renderToSVGString();
  instance.dispose(); // its clock would keep the process alive
  return svg;
}

/** Draws what a search found: history, importance, slices, parallel coordinates, a table of trials. */

import {
  type Axis,
  type Definition,
  history,
  importance,
  parallelCoordinates,
  slices,
  type Study,
} from "@graft/ml/tune";
import {
  type AxisOptions,
  chart,
  charts,
  htmlTable,
  page,
  parallelChart,
  shown,
  writeWhole,
} from "./charts.ts";

/** Writes `report.html` into a folder; gives its path. The study needs a complete trial. */
export async function writeStudyReport<S extends Definition>(
  study: Study<S>,
  folder: string,
): Promise<string> {
  const best = study.best();
  const values = history(study);
  const lines = parallelCoordinates(study);
  const figures = [
    chart("History", [
      {
        name: "best so far",
        points: values.map((p) => [p.number, p.best]),
        color: "#dc2626",
      },
      {
        name: "value",
        points: values.map((p) => [p.number, p.value]),
        color: "#2563eb",
        kind: "scatter",
      },
    ], { x: { name: "trial" }, y: { name: "value" } }),
    importanceChart(study, values.length),
    ...slices(study).map(({ axis, points }) =>
      chart(axis.name, [{
        name: "value",
        points: points.map(({ x, y }) => [x, y]),
        color: "#2563eb",
        kind: "scatter",
      }], { x: axisOf(axis), y: { name: "value" } })
    ),
    parallelChart(
      "Parallel coordinates",
      [...lines.axes.map((axis) => ({ ...axisOf(axis), range: axis.range })), { name: "value" }],
      lines.lines.map(({ places, value }) => [...places, value]),
    ),
  ];
  const names = Object.keys(study.space.definition);
  const rows = study.trials.map(({ number, state, params, value, reason }) => [
    String(number),
    ...names.map((name) => name in params ? shown(params[name as keyof typeof params]) : ""),
    value === undefined ? "" : shown(value),
    reason ? `${state}: ${reason}` : state,
  ]);
  const body = [
    `<h2>Best: trial ${best.number}</h2>`,
    htmlTable([...Object.entries(best.params), ["value", best.value!] as const].map(
      ([name, value]) => [name, shown(value)],
    )),
    "<h2>Plots</h2>",
    charts(figures),
    "<h2>Trials</h2>",
    htmlTable(rows, ["trial", ...names, "value", "state"]),
  ];
  const path = `${folder}/report.html`;
  await writeWhole(path, page("Search report", body.join("\n")));
  return path;
}

/** Bars, where there are trials enough to tell. */
function importanceChart<S extends Definition>(study: Study<S>, complete: number): string {
  if (complete < 4) return "";
  const found = importance(study);
  return chart("Importance (part of the variance)", [{
    name: "importance",
    points: found.map((one, i) => [i, one.importance]),
    color: "#2563eb",
    kind: "bar",
  }], { x: { categories: found.map((one) => one.name) } });
}

function axisOf({ name, scale, categories }: Axis): AxisOptions & { name: string } {
  return {
    name,
    log: scale === "log",
    ...(categories ? { categories: categories.map(String) } : {}),
  };
}

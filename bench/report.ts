/**
 * What the benchmarks print with: the machine, medians, tables.
 *
 * @module
 */

/** Date, processor, cores, system and engine, one a line. */
export async function machine(): Promise<string> {
  let processor = "unknown processor";
  try {
    const text = await Deno.readTextFile("/proc/cpuinfo");
    processor = /^model name\s*:\s*(.+)$/m.exec(text)?.[1] ?? processor;
  } catch {
    // Only Linux has the file.
  }
  const load = Deno.loadavg().map((n) => n.toFixed(1)).join(" ");
  return [
    `date:    ${new Date().toISOString().slice(0, 10)}`,
    `machine: ${processor}, ${navigator.hardwareConcurrency} cores, ` +
    `${
      (Deno.systemMemoryInfo().total / 2 ** 30).toFixed(0)
    } GiB, ${Deno.build.os} ${Deno.build.arch}`,
    `engine:  Deno ${Deno.version.deno}, V8 ${Deno.version.v8}`,
    `load:    ${load} (1, 5, 15 minutes; figures are good where others leave the cores alone)`,
  ].join("\n");
}

/** The middle of `values`. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Bytes as MiB. */
export function mib(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1);
}

/** Rows under a head, first column to the left, the others to the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows];
  const widths = head.map((_, c) => Math.max(...all.map((row) => row[c].length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, c) => c === 0 ? cell.padEnd(widths[c]) : cell.padStart(widths[c])).join("  ");
  return [line(head), widths.map((w) => "-".repeat(w)).join("  "), ...rows.map(line)].join("\n");
}

/** Processes that want to run, averaged over the last minute. */
export function loadAverage(): number {
  return Deno.loadavg()[0];
}

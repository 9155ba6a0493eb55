/**
 * Packing operands of matrix products into panels: for each step of depth, the elements that a tile
 * takes in that step lie side by side.
 *
 * @module
 */

import { bytesOf, type DType } from "../dtype.ts";
import { add, type Code, type Int, int, least, mul } from "./code.ts";
import { loadLanes, loadVector } from "./elements.ts";
import type { Func } from "./func.ts";
import { transpose } from "./tile.ts";

/** A panel's source: `width` lines of elements, each `depth` long. Strides are in elements. */
export interface PanelSource {
  readonly dtype: DType;
  /** From one line to the next, and from one element of a line to the next. */
  readonly across: number;
  readonly deep: number;
}

/**
 * Packs one panel of `width` lines (5 or 8) as f32 [depth, width]. Of the lines only `valid` exist;
 * those beyond repeat the last one, or hold anything.
 */
export function emitPack(
  f: Func,
  source: PanelSource,
  width: number,
  from: Code,
  to: Code,
  depth: Int,
  valid: Int,
): void {
  const { dtype, across, deep } = source;
  const bytes = bytesOf(dtype);
  const target = f.let(to);
  const put = (parts: readonly Code[], offset: number) => {
    parts.forEach((part, v) => {
      if (4 * v + 4 <= width) f.store(target, part, offset + 16 * v);
      else f.storeLane(32, target, part, 0, offset + 16 * v);
    });
  };
  if (across === 1) {
    const at = f.let(from);
    return f.for(0, depth, 1, () => {
      put(
        Array.from(
          { length: Math.ceil(width / 4) },
          (_, v) => f.let(loadVector(f, dtype, at, 4 * v * bytes)),
        ),
        0,
      );
      f.set(at, add(at, deep * bytes));
      f.set(target, add(target, 4 * width));
    });
  }
  const base = f.let(from);
  const lines = Array.from({ length: width }, (_, j) => {
    const line = int(valid).constant === width ? j : least(j, add(valid, -1));
    return f.let(add(base, mul(line, across * bytes)));
  });
  const k = f.let(0);
  if (deep === 1) {
    f.upTo(k, add(depth, -3), 4, () => {
      const at = f.let(mul(k, bytes));
      const rows = lines.map((line) => f.let(loadVector(f, dtype, add(line, at))));
      const parts: (readonly Code[])[] = [];
      for (let v = 0; v < width; v += 4) {
        const four = [0, 1, 2, 3].map((j) => rows[v + j] ?? rows[width - 1]);
        parts.push(transpose(f, four));
      }
      for (let step = 0; step < 4; step++) put(parts.map((p) => p[step]), 4 * width * step);
      f.set(target, add(target, 16 * width));
    });
  }
  f.upTo(k, depth, 1, () => {
    const at = f.let(mul(k, deep * bytes));
    const parts: Code[] = [];
    for (let v = 0; v < width; v += 4) {
      const four = [0, 1, 2, 3].map((j) => add(lines[v + j] ?? lines[width - 1], at));
      parts.push(f.let(loadLanes(f, dtype, four)));
    }
    put(parts, 0);
    f.set(target, add(target, 4 * width));
  });
}

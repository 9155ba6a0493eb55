/**
 * Scattered rows on the cpu: one stage clears, the next adds. A unit of the second owns a range of
 * columns and walks all rows in order, so results do not depend on who computes what.
 *
 * @module
 */

import { bytesOf } from "../../dtype.ts";
import type { CallKernel, Operand } from "../../kernel.ts";
import {
  add,
  type Code,
  f32x4,
  i32,
  type Int,
  type KernelFunc,
  least,
  loadLanes,
  loadVector,
  mul,
  parts,
  storeColumns,
  v128,
  type WasmProgram,
  type WasmStage,
  type WasmTarget,
} from "../../wasm.ts";

/** Columns of a unit: whole cache lines. */
const LINE = 16;
/** Bytes that a unit clears. */
const CLEAR = 1 << 18;

/** The program of scattered rows: index [N], source [N, D] → [V, D]. */
export function scatterRowsWasm(call: CallKernel, _target: WasmTarget): WasmProgram {
  const [index, source] = call.inputs;
  const [vocabulary, width] = call.outputs[0].shape;
  const n = index.shape[0];
  const bytes = 4 * vocabulary * width;
  if (bytes === 0) return { stages: [], workspace: 0, scratch: 0 };
  const stages: WasmStage[] = [{
    units: parts(bytes, CLEAR),
    cost: bytes / 10,
    build: (f) => {
      const start = f.let(mul(f.unit, CLEAR));
      const end = bytes % CLEAR === 0 ? add(start, CLEAR) : least(add(start, CLEAR), bytes);
      f.zero(add(f.output(0), start), i32.sub(end, start));
    },
  }];
  const each = Math.max(LINE, Math.ceil(width / 16 / LINE) * LINE);
  if (n > 0) {
    stages.push({
      units: parts(width, each),
      cost: n * (width / 4 + 5),
      build: (f) => {
        const first = f.let(mul(f.unit, each));
        const end = f.let(least(add(first, each), width));
        f.for(0, n, 1, (i) => {
          const at = add(f.input(0), mul(add(mul(i, index.strides[0]), index.offset), 4));
          const row = f.let(i32.load(at));
          f.if(i32.lt_u(row, vocabulary), () => {
            const out = f.let(add(f.output(0), mul(row, 4 * width)));
            const column = f.let(first);
            const step = (columns: number) => {
              const target = f.let(add(out, mul(column, 4)));
              const sum = f32x4.add(v128.load(target), sourceVector(f, source, i, column));
              storeColumns(f, target, f.let(sum), columns, 0);
            };
            f.upTo(column, add(end, -3), 4, () => step(4));
            if (width % 4 !== 0) f.if(i32.lt_s(column, end), () => step(width % 4));
          });
        });
      },
    });
  }
  return { stages, workspace: 0, scratch: 0 };
}

/** Four columns of a source row; columns beyond the last repeat it, or hold anything. */
function sourceVector(f: KernelFunc, source: Operand, row: Int, column: Int): Code {
  const [down, across] = source.strides;
  const place = (c: Int): Int => {
    const element = add(mul(row, down), mul(c, across), source.offset);
    return add(f.input(1), mul(element, bytesOf(source.dtype)));
  };
  if (across === 1) return loadVector(f, source.dtype, place(column));
  const last = source.shape[1] - 1;
  const columns = [0, 1, 2, 3].map((j) => place(least(add(column, j), last)));
  return loadLanes(f, source.dtype, columns);
}

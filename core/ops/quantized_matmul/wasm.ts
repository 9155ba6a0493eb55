/**
 * Products with a packed matrix on the cpu: what a tile takes of W is made into floats while it is
 * brought into panels, and for few rows while it is in the first-level cache.
 *
 * @module
 */

import { bytesOf } from "../../dtype.ts";
import type { CallKernel } from "../../kernel.ts";
import {
  add,
  eachTile,
  emitDotTile,
  i32,
  type KernelFunc,
  least,
  type Local,
  mul,
  parts,
  type WasmProgram,
  type WasmStage,
  type WasmTarget,
} from "../../wasm.ts";
import type { Packing } from "../dequantize.ts";
import type { Product, Side } from "../matmul/product.ts";
import { packed } from "../matmul/wasm.ts";
import { packColumns, packRows, unpackRow } from "./wasm_pack.ts";

/** Up to so many rows are multiplied without panels. */
const FEW = 8;
/** Rows of W that are floats at a time. */
const GROUP = 4;

/** x [M, C] · Wᵀ, or where `turned` x [M, R] · W. */
export function quantizedMatmulWasm(call: CallKernel, target: WasmTarget): WasmProgram {
  const w = call.attrs as unknown as Packing & { readonly turned: boolean };
  const [x] = call.inputs;
  const [m, k] = x.shape;
  const n = call.outputs[0].shape[1];
  const a: Side = {
    input: 0,
    dtype: x.dtype,
    offset: x.offset,
    across: m === 1 ? 0 : x.strides[0],
    deep: k === 1 ? 1 : x.strides[1],
  };
  if (m * n === 0) return { stages: [], workspace: 0, scratch: 0 };
  if (m <= FEW && a.deep === 1 && !w.turned) {
    return { stages: [dots(w, a, m)], workspace: 0, scratch: 4 * GROUP * w.columns };
  }
  // Panels are packed in a way of their own, which looks at no strides of b.
  const b: Side = { input: 1, dtype: "f32", offset: 0, across: 1, deep: 1 };
  const p: Product = { m, n, k, batches: 1, outer: [], a, b };
  return packed(p, target, (f, panel) => (w.turned ? packColumns : packRows)(f, w, panel));
}

/** Dot products of few rows of x with the rows of W. */
function dots(w: Packing, a: Side, m: number): WasmStage {
  const { rows: n, columns: k } = w;
  const bytes = bytesOf(a.dtype);
  const each = Math.min(n, Math.max(GROUP, Math.ceil(32768 / k / GROUP) * GROUP));
  const tiles = (f: KernelFunc, row: Local, count: number): void => {
    for (let i = 0; i < count; i++) unpackRow(f, w, add(row, i), add(f.scratch, 4 * k * i));
    eachTile(f, m, Math.min(3, m), (line, lines) => {
      emitDotTile(
        f,
        f.vectors,
        {
          rows: lines,
          columns: count,
          aRow: a.across * bytes,
          bRow: 4 * k,
          cRow: 4 * n,
          aType: a.dtype,
          bType: "f32",
          depth: k,
        },
        add(f.input(0), mul(add(mul(line, a.across), a.offset), bytes)),
        f.scratch,
        add(f.output(0), mul(line, 4 * n), mul(row, 4)),
      );
    });
  };
  return {
    units: parts(n, each),
    cost: n * k * (0.5 + 2 * m / 25),
    build: (f) => {
      const row = f.let(mul(f.unit, each));
      const end = f.let(least(add(row, each), n));
      f.upTo(row, add(end, 1 - GROUP), GROUP, () => tiles(f, row, GROUP));
      if (n % GROUP !== 0) f.if(i32.lt_s(row, end), () => tiles(f, row, n % GROUP));
    },
  };
}

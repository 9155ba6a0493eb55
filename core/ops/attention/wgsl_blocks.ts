/**
 * The building blocks of attention kernels: access to the operands, which pairs of query and key take
 * part, and products of 32 × 32 blocks.
 *
 * A workgroup of 128 invocations works on a block of 32 rows by 32 columns (of queries and keys, or
 * keys and queries). Invocation `local` holds rows 2·tr and 2·tr + 1 and the four columns from 4·tc on,
 * where tr = local / 8 and tc = local % 8.
 *
 * @module
 */

import type { CallKernel, Operand } from "../../kernel.ts";
import type { WgslModule } from "../../wgsl.ts";

/** Rows and columns of a block. */
export const BLOCK = 32;

/** Invocations of a workgroup. */
export const SIZE = 128;

/** Row strides of the tiles in workgroup memory, padded by one vector. */
const PAIRS = BLOCK / 2 + 1;
const QUADS = BLOCK / 4 + 1;

/** The sizes and settings of a call. */
export interface Sizes {
  readonly batch: number;
  readonly heads: number;
  readonly keyHeads: number;
  /** Query heads for each key head. */
  readonly group: number;
  readonly queries: number;
  readonly keys: number;
  readonly depth: number;
  /** Chunks of 32 that hold `depth`. */
  readonly chunks: number;
  readonly causal: boolean;
  readonly window: number;
  readonly scale: string;
  readonly masked: boolean;
}

/** Reads the sizes off a call whose first inputs are q and k. */
export function sizesOf({ inputs: [q, k], attrs }: CallKernel): Sizes {
  const [batch, heads, queries, depth] = q.shape;
  return {
    batch,
    heads,
    keyHeads: k.shape[1],
    group: heads / k.shape[1],
    queries,
    keys: k.shape[2],
    depth,
    chunks: Math.ceil(depth / BLOCK),
    causal: attrs.causal === true,
    window: Number(attrs.window ?? 0),
    scale: `${Math.fround(Number(attrs.scale)).toExponential(9)}f`,
    masked: attrs.masked === true,
  };
}

/**
 * Binds input `index`, a [B, heads, T, D] array, and returns functions `NAME_base(b, h)` and
 * `NAME_at(base, t, d)`.
 */
export function rowsFunctions(
  module: WgslModule,
  operand: Operand,
  index: number,
  name: string,
): string {
  const array = module.array({ kind: "input", index }, operand.dtype);
  const [sb, sh, st, sd] = operand.strides;
  return `fn ${name}_base(b: i32, h: i32) -> i32 {
  return ${operand.offset} + b * ${sb} + h * ${sh};
}
fn ${name}_at(base: i32, t: i32, d: i32) -> f32 {
  let at = base + t * ${st} + d${operand.shape[3] === 1 || sd === 1 ? "" : ` * ${sd}`};
  return ${array.load("at")};
}`;
}

/** Binds input `index`, a [B, H, T] array, and returns the function `NAME_at(b, h, t)`. */
export function vectorFunction(
  module: WgslModule,
  operand: Operand,
  index: number,
  name: string,
): string {
  const array = module.array({ kind: "input", index }, operand.dtype);
  const [sb, sh, st] = operand.strides;
  return `fn ${name}_at(b: i32, h: i32, t: i32) -> f32 {
  let at = ${operand.offset} + b * ${sb} + h * ${sh} + t * ${st};
  return ${array.load("at")};
}`;
}

/**
 * Functions over positions: `limit()`, how many keys take part; `first_key(row)` and `end_key(row)`,
 * the keys that the mask by position leaves to a query; `may(b, h, row, key)` for a pair in range.
 */
export function maskFunctions(module: WgslModule, call: CallKernel, sizes: Sizes): string {
  const { queries, keys, causal, window, masked } = sizes;
  let allowed = "true";
  if (masked) {
    const mask = call.inputs[3];
    const array = module.array({ kind: "input", index: 3 }, mask.dtype);
    const [sb, sh, sq, sk] = mask.strides;
    allowed = array.load(`${mask.offset} + b * ${sb} + h * ${sh} + row * ${sq} + key * ${sk}`);
  }
  return `fn limit() -> i32 { return min(${module.scalar(0)}, ${keys}); }
fn position(row: i32) -> i32 { return ${module.scalar(0)} - ${queries} + row; }
fn end_key(row: i32) -> i32 {
  return ${causal ? "max(0, min(limit(), position(row) + 1))" : "limit()"};
}
fn first_key(row: i32) -> i32 {
  return ${window > 0 ? `max(0, position(row) - ${window - 1})` : "0"};
}
fn may(b: i32, h: i32, row: i32, key: i32) -> bool {
  if (row >= ${queries} || key < first_key(row) || key >= end_key(row)) { return false; }
  return ${allowed};
}`;
}

/** Workgroup memory of the blocks. */
export const TILES: string = `var<workgroup> tile_r: array<vec2<f32>, ${BLOCK * PAIRS}>;
var<workgroup> tile_c: array<vec4<f32>, ${BLOCK * QUADS}>;
var<workgroup> weights: array<vec2<f32>, ${BLOCK * PAIRS}>;`;

/** The place in `weights` of the invocation's rows and column `column` of the block. */
export function weightAt(column: string): string {
  return `weights[(${column}) * ${PAIRS}u + tr]`;
}

// Brings rows `row0` to `row0 + 31` and depths `d0` to `d0 + 31` of an array into a tile, with zeros
// where there is no row (from `limit` on) or no depth.
function fill(
  name: string,
  row0: string,
  limit: string,
  d0: string,
  depth: number,
  place: string,
): string {
  return `for (var e = local; e < ${BLOCK * BLOCK}u; e += ${SIZE}u) {
      let d = e % ${BLOCK}u;
      let r = e / ${BLOCK}u;
      var v = 0.0;
      if (${row0} + i32(r) < ${limit} && ${d0} + d < ${depth}u) {
        v = ${name}_at(base_${name}, ${row0} + i32(r), i32(${d0} + d));
      }
      ${place} = v;
    }`;
}

/** A side of a block product: an array, its first row, and how many rows it has. */
export interface BlockSide {
  readonly name: string;
  readonly row0: string;
  readonly limit: string;
}

/**
 * Statements that compute `into`0 and `into`1, the products over the depth of the invocation's two
 * rows with its four columns.
 */
export function dot(rows: BlockSide, columns: BlockSide, depth: number, into: string): string {
  return `var ${into}0 = vec4<f32>();
  var ${into}1 = vec4<f32>();
  for (var d0 = 0u; d0 < ${depth}u; d0 += ${BLOCK}u) {
    workgroupBarrier();
    ${
    fill(rows.name, rows.row0, rows.limit, "d0", depth, `tile_r[d * ${PAIRS}u + (r >> 1u)][r & 1u]`)
  }
    ${
    fill(
      columns.name,
      columns.row0,
      columns.limit,
      "d0",
      depth,
      `tile_c[d * ${QUADS}u + (r >> 2u)][r & 3u]`,
    )
  }
    workgroupBarrier();
    for (var d = 0u; d < ${Math.min(BLOCK, depth)}u; d++) {
      let x = tile_r[d * ${PAIRS}u + tr];
      let y = tile_c[d * ${QUADS}u + tc];
      ${into}0 += x.x * y;
      ${into}1 += x.y * y;
    }
  }`;
}

/** Declares the accumulators of {@linkcode accumulate}: two rows, four depths in each chunk. */
export function accumulators(into: string, chunks: number): string {
  const lines: string[] = [];
  for (let j = 0; j < chunks; j++) {
    lines.push(`var ${into}${j}_0 = vec4<f32>();`, `var ${into}${j}_1 = vec4<f32>();`);
  }
  return lines.join("\n  ");
}

/** Statements that add to the accumulators the rows of `columns` weighted by `weights`. */
export function accumulate(
  columns: BlockSide,
  depth: number,
  chunks: number,
  into: string,
): string {
  const lines: string[] = [];
  for (let j = 0; j < chunks; j++) {
    lines.push(`workgroupBarrier();
    ${
      fill(
        columns.name,
        columns.row0,
        columns.limit,
        `${j * BLOCK}u`,
        depth,
        `tile_c[r * ${QUADS}u + (d >> 2u)][d & 3u]`,
      )
    }
    workgroupBarrier();
    for (var c = 0u; c < ${BLOCK}u; c++) {
      let x = ${weightAt("c")};
      let y = tile_c[c * ${QUADS}u + tc];
      ${into}${j}_0 += x.x * y;
      ${into}${j}_1 += x.y * y;
    }`);
  }
  return lines.join("\n    ");
}

/**
 * Statements that store the accumulators times `factor`0 and `factor`1 as rows of a contiguous
 * [B, rows, heads, D] output, where `row` is the invocation's first row.
 */
export function storeRows(
  store: (at: string, value: string) => string,
  sizes: { rows: number; heads: number; depth: number; chunks: number },
  head: string,
  from: string,
  factor: string,
): string {
  const { rows, heads, depth, chunks } = sizes;
  const lines: string[] = [];
  for (let r = 0; r < 2; r++) {
    const all = Array.from({ length: chunks }, (_, j) => `${from}${j}_${r}`).join(", ");
    lines.push(`if (row + ${r} < ${rows}) {
    let origin = u32((b * ${rows} + row + ${r}) * ${heads} + ${head}) * ${depth}u;
    var all = array<vec4<f32>, ${chunks}>(${all});
    for (var j = 0u; j < ${chunks}u; j++) {
      for (var c = 0u; c < 4u; c++) {
        let d = j * ${BLOCK}u + tc * 4u + c;
        if (d < ${depth}u) { ${store("(origin + d)", `all[j][c] * ${factor}${r}`)} }
      }
    }
  }`);
  }
  return lines.join("\n  ");
}

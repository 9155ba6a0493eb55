/**
 * The building blocks of attention kernels: access to the operands, which pairs of query and key take
 * part, and products of 32 × 32 blocks.
 *
 * A workgroup of 64 invocations works on a block of 32 rows by 32 columns (of queries and keys, or keys
 * and queries). Invocation `local` holds the four rows from 4·tr on and the four columns from 4·tc on,
 * where tr = local / 8 and tc = local % 8.
 *
 * @module
 */

import type { CallKernel, Operand } from "../../kernel.ts";
import type { WgslModule } from "../../wgsl.ts";

/** Rows and columns of a block. */
export const BLOCK = 32;

/** Invocations of a workgroup. */
export const SIZE = 64;

/** The rows of an invocation, as components of its vectors. */
export const ROWS: readonly number[] = [0, 1, 2, 3];

/** Row stride of the tiles in workgroup memory, padded by one vector. */
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

/** An input of [B, heads, T, D]: its code and how it is read. */
export interface Rows {
  readonly name: string;
  /** Functions `NAME_base(b, h)`, and `NAME_at(base, t, d)` or, with vectors, `NAME_vec(base, t, d)`. */
  readonly code: string;
  /** Whether four depths from a multiple of four on are read at once. */
  readonly vectors: boolean;
}

/** Binds input `index` of the call. */
export function rowsOf(module: WgslModule, call: CallKernel, index: number, name: string): Rows {
  const operand = call.inputs[index];
  const { dtype, shape, offset, strides } = operand;
  const [sb, sh, st, sd] = strides;
  const byFour = (n: number): boolean => n % 4 === 0;
  const vectors = dtype === "f32" && byFour(shape[3]) && [sb, sh, st, offset].every(byFour);
  const source = { kind: "input", index } as const;
  const base = `fn ${name}_base(b: i32, h: i32) -> i32 {
  return ${offset} + b * ${sb} + h * ${sh};
}`;
  if (vectors) {
    const variable = module.bind(source, "vec4<f32>");
    return {
      name,
      vectors,
      code: `${base}
fn ${name}_vec(base: i32, t: i32, d: i32) -> vec4<f32> {
  return ${variable}[(u32(base + t * ${st}) >> 2u) + (u32(d) >> 2u)];
}`,
    };
  }
  return {
    name,
    vectors,
    code: `${base}
fn ${name}_at(base: i32, t: i32, d: i32) -> f32 {
  let at = base + t * ${st} + d${shape[3] === 1 ? "" : ` * ${sd}`};
  return ${module.array(source, dtype).load("at")};
}`,
  };
}

/** Binds input `index`, a [B, H, T] array, and returns the function `NAME_at(b, h, t)`. */
function vectorFunction(
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
 * the keys that the mask by position leaves to a query; `allowed(b, h, row, key)`, what the mask says of
 * a pair in range; `may(b, h, row, key)`, whether a pair takes part.
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
fn allowed(b: i32, h: i32, row: i32, key: i32) -> bool { return ${allowed}; }
fn may(b: i32, h: i32, row: i32, key: i32) -> bool {
  if (row >= ${queries} || key < first_key(row) || key >= end_key(row)) { return false; }
  return allowed(b, h, row, key);
}`;
}

/** What the gradient reads: its rows, and the functions that read them, lse, delta and the mask. */
export interface GradientInputs {
  readonly q: Rows;
  readonly k: Rows;
  readonly v: Rows;
  readonly dout: Rows;
  readonly code: string;
}

/**
 * Binds the gradient's inputs: q, k, v, (mask), dout, lse, delta. Where no scores' gradient is wanted,
 * v and delta are left out.
 */
export function gradientInputs(
  module: WgslModule,
  call: CallKernel,
  sizes: Sizes,
  scores: boolean,
): GradientInputs {
  const after = sizes.masked ? 4 : 3;
  const q = rowsOf(module, call, 0, "q");
  const k = rowsOf(module, call, 1, "k");
  const dout = rowsOf(module, call, after, "dout");
  const v = scores ? rowsOf(module, call, 2, "v") : { name: "v", code: "", vectors: false };
  const code = [
    q.code,
    k.code,
    v.code,
    dout.code,
    vectorFunction(module, call.inputs[after + 1], after + 1, "lse"),
    scores ? vectorFunction(module, call.inputs[after + 2], after + 2, "delta") : "",
    maskFunctions(module, call, sizes),
  ].join("\n");
  return { q, k, v, dout, code };
}

/** Workgroup memory of the blocks. */
export const TILES: string = `var<workgroup> tile_r: array<vec4<f32>, ${BLOCK * QUADS}>;
var<workgroup> tile_c: array<vec4<f32>, ${BLOCK * QUADS}>;
var<workgroup> weights: array<vec4<f32>, ${BLOCK * QUADS}>;`;

/** The place in `weights` of the invocation's rows and column `column` of the block. */
export function weightAt(column: string): string {
  return `weights[(${column}) * ${QUADS}u + tr]`;
}

/** Where a tile's value lies: by depth and row for a product, by row and depth for a weighted sum. */
type Order = "depth, row" | "row, depth";

// Brings rows `row0` to `row0 + 31` and depths `d0` to `d0 + 31` of an array into a tile, with zeros
// where there is no row (from `limit` on) or no depth.
function fill(side: BlockSide, d0: string, depth: number, tile: string, order: Order): string {
  const { rows: { name, vectors }, row0, limit } = side;
  const inside = `${row0} + i32(r) < ${limit} && ${d0} + d < ${depth}u`;
  if (!vectors) {
    const place = order === "depth, row"
      ? `${tile}[d * ${QUADS}u + (r >> 2u)][r & 3u]`
      : `${tile}[r * ${QUADS}u + (d >> 2u)][d & 3u]`;
    return `for (var e = local; e < ${BLOCK * BLOCK}u; e += ${SIZE}u) {
      let d = e % ${BLOCK}u;
      let r = e / ${BLOCK}u;
      var v = 0.0;
      if (${inside}) { v = ${name}_at(base_${name}, ${row0} + i32(r), i32(${d0} + d)); }
      ${place} = v;
    }`;
  }
  const place = order === "depth, row"
    ? ROWS.map((c) => `${tile}[(d + ${c}u) * ${QUADS}u + (r >> 2u)][r & 3u] = v[${c}];`).join(" ")
    : `${tile}[r * ${QUADS}u + (d >> 2u)] = v;`;
  return `for (var e = local; e < ${BLOCK * BLOCK / 4}u; e += ${SIZE}u) {
      let d = (e % ${BLOCK / 4}u) * 4u;
      let r = e / ${BLOCK / 4}u;
      var v = vec4<f32>();
      if (${inside}) { v = ${name}_vec(base_${name}, ${row0} + i32(r), i32(${d0} + d)); }
      ${place}
    }`;
}

/** A side of a block product: an array, its first row, and where its rows end. */
export interface BlockSide {
  readonly rows: Rows;
  readonly row0: string;
  readonly limit: string;
}

/**
 * Statements that compute `into`0 to `into`3, the products over the depth of each of the invocation's
 * rows with its four columns.
 */
export function dot(rows: BlockSide, columns: BlockSide, depth: number, into: string): string {
  return `${ROWS.map((r) => `var ${into}${r} = vec4<f32>();`).join(" ")}
  for (var d0 = 0u; d0 < ${depth}u; d0 += ${BLOCK}u) {
    workgroupBarrier();
    ${fill(rows, "d0", depth, "tile_r", "depth, row")}
    ${fill(columns, "d0", depth, "tile_c", "depth, row")}
    workgroupBarrier();
    for (var d = 0u; d < ${Math.min(BLOCK, depth)}u; d++) {
      let x = tile_r[d * ${QUADS}u + tr];
      let y = tile_c[d * ${QUADS}u + tc];
      ${ROWS.map((r) => `${into}${r} += x[${r}] * y;`).join("\n      ")}
    }
  }`;
}

/** Declares the accumulators of {@linkcode accumulate}: four rows, four depths in each chunk. */
export function accumulators(into: string, chunks: number): string {
  const lines: string[] = [];
  for (let j = 0; j < chunks; j++) {
    lines.push(ROWS.map((r) => `var ${into}${j}_${r} = vec4<f32>();`).join(" "));
  }
  return lines.join("\n  ");
}

/** Statements that write `from`0 to `from`3, the invocation's values by row, to the weights. */
export function storeWeights(from: string): string {
  return ROWS.map((c) =>
    `${weightAt(`tc * 4u + ${c}u`)} = vec4<f32>(${
      ROWS.map((r) => `${from}${r}[${c}]`).join(", ")
    });`
  ).join("\n    ");
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
    ${fill(columns, `${j * BLOCK}u`, depth, "tile_c", "row, depth")}
    workgroupBarrier();
    for (var c = 0u; c < ${BLOCK}u; c++) {
      let x = ${weightAt("c")};
      let y = tile_c[c * ${QUADS}u + tc];
      ${ROWS.map((r) => `${into}${j}_${r} += x[${r}] * y;`).join("\n      ")}
    }`);
  }
  return lines.join("\n    ");
}

/**
 * Statements that store the accumulators, each row times its component of the vector `factor`, as rows
 * of a contiguous [B, rows, heads, D] output, where `row` is the invocation's first row.
 */
export function storeRows(
  store: (at: string, value: string) => string,
  sizes: { rows: number; heads: number; depth: number; chunks: number },
  head: string,
  from: string,
  factor: string | null,
): string {
  const { rows, heads, depth, chunks } = sizes;
  const all: string[] = [];
  for (const r of ROWS) for (let j = 0; j < chunks; j++) all.push(`${from}${j}_${r}`);
  return `var all_${from} = array<vec4<f32>, ${4 * chunks}>(${all.join(", ")});
  for (var r = 0u; r < 4u; r++) {
    if (row + i32(r) >= ${rows}) { break; }
    let origin = u32((b * ${rows} + row + i32(r)) * ${heads} + ${head}) * ${depth}u;
    for (var j = 0u; j < ${chunks}u; j++) {
      for (var c = 0u; c < 4u; c++) {
        let d = j * ${BLOCK}u + tc * 4u + c;
        let value = all_${from}[r * ${chunks}u + j][c]${factor ? ` * ${factor}[r]` : ""};
        if (d < ${depth}u) { ${store("(origin + d)", "value")} }
      }
    }
  }`;
}

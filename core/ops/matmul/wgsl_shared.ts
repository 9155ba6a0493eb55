/**
 * The product on a GPU: a workgroup brings a tile of A and of B into workgroup memory, and each
 * invocation keeps a small tile of C in registers.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { countOf, dispatchOf, type WgslTarget } from "../../wgsl.ts";
import { beginTile, type Product, type Side, storeTile, type TiledPass } from "./wgsl_product.ts";

/** The tile of a workgroup, and of an invocation. */
interface Tiling {
  readonly blockM: number;
  readonly blockN: number;
  readonly blockK: number;
  readonly rows: number;
  /** Vectors of four columns. */
  readonly vectors: number;
}

const tiling = (
  blockM: number,
  blockN: number,
  blockK: number,
  rows: number,
  vectors: number,
): Tiling => ({ blockM, blockN, blockK, rows, vectors });

// Enough workgroups to keep a large GPU busy.
const BUSY = 128;

function choose({ m, n, batch }: Product, target: WgslTarget): Tiling {
  const wide = target.maxWorkgroupBytes >= 16 * (128 + 4 + 128) * 4 && target.maxInvocations >= 256;
  const tiles = (rows: number, columns: number): number =>
    Math.ceil(m / rows) * Math.ceil(n / columns) * countOf(batch);
  if (n <= 16) return tiling(128, 16, 16, 4, 1);
  if (m <= 16) return tiling(16, 128, 16, 4, 1);
  if (n <= 32) return tiling(128, 32, 16, 8, 1);
  if (m <= 32) return tiling(32, 128, 16, 8, 1);
  if (wide && tiles(128, 128) >= BUSY) return tiling(128, 128, 16, 8, 2);
  return tiling(64, 64, 16, 8, 1);
}

/** The pass. */
export function sharedTile(
  product: Product,
  call: CallKernel,
  target: WgslTarget,
): TiledPass {
  const { m, n, k, a, b, batch } = product;
  const { blockM, blockN, blockK, rows, vectors } = choose(product, target);
  const across = blockN / (vectors * 4), down = blockM / rows;
  const size = across * down;
  const tilesM = Math.ceil(m / blockM), tilesN = Math.ceil(n / blockN);
  const tiles = countOf(batch) * tilesM * tilesN;
  const chunks = tiles >= BUSY
    ? 1
    : Math.max(1, Math.min(Math.ceil(2 * BUSY / tiles), Math.floor(k / 256), 64));
  const length = Math.ceil(k / chunks / blockK) * blockK;

  const { module, functions, sink } = beginTile(product, call, target, chunks > 1);
  // Tiles lie [k][m] and [k][n]. A tile that is transposed on its way in is padded by a vector, so
  // that its scattered stores meet fewer bank conflicts.
  const strideA = blockM / 4 + (a.inner === 1 ? 1 : 0);
  const strideB = blockN / 4 + (b.inner === 1 ? 1 : 0);
  const acc = (i: number, j: number): string => `c${i}_${j}`;
  const quads = rows / 4;
  const compute: string[] = [];
  for (let q = 0; q < quads; q++) {
    compute.push(`let a${q} = tile_a[kk * ${strideA}u + ty + ${q * down}u];`);
  }
  for (let j = 0; j < vectors; j++) {
    compute.push(`let b${j} = tile_b[kk * ${strideB}u + tx + ${j * across}u];`);
  }
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < vectors; j++) {
      compute.push(`${acc(i, j)} += a${i >> 2}.${"xyzw"[i & 3]} * b${j};`);
    }
  }
  const declarations: string[] = [];
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < vectors; j++) declarations.push(`var ${acc(i, j)} = vec4<f32>();`);
  }
  const groups = dispatchOf(tiles * chunks, target);
  const code = `var<workgroup> tile_a: array<vec4<f32>, ${blockK * strideA}>;
var<workgroup> tile_b: array<vec4<f32>, ${blockK * strideB}>;
${functions}
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let group = id.x + id.y * ${groups[0]}u;
  if (group >= ${tiles * chunks}u) { return; }
  let chunk = group / ${tiles}u;
  let tile_index = group % ${tiles}u;
  let batch = tile_index / ${tilesM * tilesN}u;
  let block = tile_index % ${tilesM * tilesN}u;
  let row0 = (block / ${tilesN}u) * ${blockM}u;
  let column0 = (block % ${tilesN}u) * ${blockN}u;
  let base_a = a_base(batch);
  let base_b = b_base(batch);
  let tx = local % ${across}u;
  let ty = local / ${across}u;
  ${declarations.join("\n  ")}
  let first = chunk * ${length}u;
  let end = min(first + ${length}u, ${k}u);
  for (var k0 = first; k0 < end; k0 += ${blockK}u) {
    ${loadTile(a, "a", blockM, blockK, strideA, "row0", m, size)}
    ${loadTile(b, "b", blockN, blockK, strideB, "column0", n, size)}
    workgroupBarrier();
    for (var kk = 0u; kk < ${blockK}u; kk++) {
      ${compute.join("\n      ")}
    }
    workgroupBarrier();
  }
  ${
    storeTile(
      sink,
      `${m}u`,
      `${n}u`,
      rows,
      vectors,
      acc,
      // An invocation's rows come in groups of four, its columns in vectors, spread over the block.
      (i) => `row0 + ty * 4u + (${i} / 4u) * ${down * 4}u + (${i} % 4u)`,
      (j) => `column0 + tx * 4u + ${j} * ${across * 4}u`,
    )
  }
}`;
  return { pass: module.pass(code, groups, 2 * countOf(batch) * m * n * k), chunks };
}

// Copies the `block` × `blockK` tile from (origin, k0) on to workgroup memory as [k][outer], with
// zeros past the edges. Neighbouring invocations read neighbouring memory.
function loadTile(
  side: Side,
  name: string,
  block: number,
  blockK: number,
  stride: number,
  origin: string,
  size: number,
  invocations: number,
): string {
  const tile = `tile_${name}`;
  if (side.vectors === "outer") {
    return `for (var e = local; e < ${block / 4 * blockK}u; e += ${invocations}u) {
      let o = e % ${block / 4}u;
      let i = e / ${block / 4}u;
      var v = vec4<f32>();
      if (${origin} + o * 4u < ${size}u && k0 + i < end) {
        v = ${name}_vec(${name}_line(base_${name}, ${origin} + o * 4u), k0 + i);
      }
      ${tile}[i * ${stride}u + o] = v;
    }`;
  }
  if (side.vectors === "inner") {
    return `for (var e = local; e < ${block * blockK / 4}u; e += ${invocations}u) {
      let i = (e % ${blockK / 4}u) * 4u;
      let o = e / ${blockK / 4}u;
      var v = vec4<f32>();
      if (${origin} + o < ${size}u && k0 + i < end) {
        v = ${name}_vec(${name}_line(base_${name}, ${origin} + o), k0 + i);
      }
      let at = i * ${stride}u + (o >> 2u);
      let c = o & 3u;
      ${tile}[at][c] = v.x;
      ${tile}[at + ${stride}u][c] = v.y;
      ${tile}[at + ${2 * stride}u][c] = v.z;
      ${tile}[at + ${3 * stride}u][c] = v.w;
    }`;
  }
  const [o, i] = side.inner === 1
    ? [`e / ${blockK}u`, `e % ${blockK}u`]
    : [`e % ${block}u`, `e / ${block}u`];
  return `for (var e = local; e < ${block * blockK}u; e += ${invocations}u) {
      let o = ${o};
      let i = ${i};
      var v = 0.0;
      if (${origin} + o < ${size}u && k0 + i < end) {
        v = ${name}_at(${name}_line(base_${name}, ${origin} + o), k0 + i);
      }
      ${tile}[i * ${stride}u + (o >> 2u)][o & 3u] = v;
    }`;
}

/**
 * The product on a software device: each invocation holds a tile of C in registers and reads A and B
 * straight from memory, which its caches serve.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { countOf, dispatchOf, WgslModule, type WgslTarget } from "../../wgsl.ts";
import { type Product, sideFunctions, sinkOf, storeTile, type TiledPass } from "./wgsl_product.ts";

// Invocations of a workgroup: the driver's vector width, so that the rows of A are the same for all.
const LANES = 8;

// Multiplications from which on a product counts as large.
const LARGE = 2 ** 29;

/** The pass. */
export function registerTile(
  product: Product,
  call: CallKernel,
  target: WgslTarget,
): TiledPass {
  const { m, n, k, a, b, batch } = product;
  // Few columns: the lanes go along the rows instead.
  const tall = n <= 16 && m > n;
  // A larger tile reads less and takes longer to compile: it has to be worth it.
  const large = m >= 64 && n >= 128 && countOf(batch) * m * n * k >= LARGE;
  const rows = tall ? Math.min(4, m) : m >= 8 ? 8 : m >= 4 ? 4 : m;
  const vectors = large ? 4 : n > 32 || tall && n > 4 ? 2 : 1;
  const [blockM, blockN] = tall ? [rows * LANES, vectors * 4] : [rows, vectors * 4 * LANES];
  const tilesM = Math.ceil(m / blockM), tilesN = Math.ceil(n / blockN);
  const tiles = countOf(batch) * tilesM * tilesN;
  const chunks = tiles >= 8 ? 1 : Math.max(1, Math.min(Math.ceil(8 / tiles), Math.floor(k / 256)));
  const length = Math.ceil(k / chunks / 4) * 4;

  const module = new WgslModule(target, call.scalars);
  const functions = [
    sideFunctions(module, a, 0, "a", batch),
    sideFunctions(module, b, 1, "b", batch),
  ];
  // A large tile's epilogue would take the driver many times as long to compile as the tile itself.
  const split = chunks > 1 || (rows * vectors >= 8 && call.epilogue !== null);
  const sink = sinkOf(module, product, call, split);
  const acc = (i: number, j: number): string => `c${i}_${j}`;
  const row = (i: number): string => `r${i}`;
  const column = (j: number, c = 0): string => c === 0 ? `n${j}` : `min(n${j} + ${c}u, ${n - 1}u)`;

  // Four steps of k at once: values of A are named aI_K (row, step), vectors of B bK_J.
  const step4: string[] = [];
  const component = "xyzw";
  const left: string[][] = [];
  const alongRows = a.vectors === "outer" && rows % 4 === 0;
  for (let i = 0; i < rows; i++) {
    left.push([]);
    if (alongRows) {
      for (let s = 0; s < 4; s++) {
        const name = `a${i >> 2}_${s}`;
        if (i % 4 === 0) step4.push(`let ${name} = a_vec(base_a, ${row(i)}, k + ${s}u);`);
        left[i].push(`${name}.${component[i % 4]}`);
      }
    } else if (a.vectors === "inner") {
      step4.push(`let a${i} = a_vec(base_a, ${row(i)}, k);`);
      for (let s = 0; s < 4; s++) left[i].push(`a${i}.${component[s]}`);
    } else {
      for (let s = 0; s < 4; s++) {
        step4.push(`let a${i}_${s} = a_at(base_a, ${row(i)}, k + ${s}u);`);
        left[i].push(`a${i}_${s}`);
      }
    }
  }
  for (let j = 0; j < vectors; j++) {
    if (b.vectors === "inner") {
      for (let c = 0; c < 4; c++) step4.push(`let t${j}_${c} = b_vec(base_b, ${column(j, c)}, k);`);
      for (let s = 0; s < 4; s++) {
        const parts = [0, 1, 2, 3].map((c) => `t${j}_${c}.${component[s]}`);
        step4.push(`let b${s}_${j} = vec4<f32>(${parts.join(", ")});`);
      }
    } else {
      for (let s = 0; s < 4; s++) {
        step4.push(`let b${s}_${j} = ${rightVector(product, column, j, `k + ${s}u`)};`);
      }
    }
  }
  for (let s = 0; s < 4; s++) {
    for (let i = 0; i < rows; i++) {
      for (let j = 0; j < vectors; j++) {
        step4.push(`${acc(i, j)} += ${left[i][s]} * b${s}_${j};`);
      }
    }
  }
  const step1: string[] = [];
  for (let j = 0; j < vectors; j++) {
    step1.push(`let b${j} = ${rightVector(product, column, j, "k")};`);
  }
  for (let i = 0; i < rows; i++) {
    step1.push(`let a${i} = a_at(base_a, ${row(i)}, k);`);
    for (let j = 0; j < vectors; j++) step1.push(`${acc(i, j)} += a${i} * b${j};`);
  }

  const groups = dispatchOf(tiles * chunks, target);
  const declarations: string[] = [];
  for (let i = 0; i < rows; i++) {
    // Rows past the end repeat the last ones; they are not stored. Vectors of rows stay aligned.
    const last = alongRows ? m - 4 + i % 4 : m - 1;
    declarations.push(`let ${row(i)} = min(row0 + ${i}u, ${last}u);`);
    for (let j = 0; j < vectors; j++) declarations.push(`var ${acc(i, j)} = vec4<f32>();`);
  }
  for (let j = 0; j < vectors; j++) {
    const last = b.vectors === "outer" ? n - 4 : n - 1;
    declarations.push(`let n${j} = min(column0 + ${j * (tall ? 4 : 4 * LANES)}u, ${last}u);`);
  }
  const code = `${functions.join("\n")}
${sink.code}
@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let group = id.x + id.y * ${groups[0]}u;
  if (group >= ${tiles * chunks}u) { return; }
  let chunk = group / ${tiles}u;
  let tile_index = group % ${tiles}u;
  let batch = tile_index / ${tilesM * tilesN}u;
  let block = tile_index % ${tilesM * tilesN}u;
  let row0 = (block / ${tilesN}u) * ${blockM}u${tall ? ` + lane * ${rows}u` : ""};
  let column0 = (block % ${tilesN}u) * ${blockN}u${tall ? "" : " + lane * 4u"};
  let base_a = a_base(batch);
  let base_b = b_base(batch);
  ${declarations.join("\n  ")}
  var k = chunk * ${length}u;
  let end = min(k + ${length}u, ${k}u);
  for (; k + 4u <= end; k += 4u) {
    ${step4.join("\n    ")}
  }
  ${k % 4 === 0 ? "" : `for (; k < end; k++) {\n    ${step1.join("\n    ")}\n  }`}
  ${
    storeTile(
      sink,
      product,
      rows,
      vectors,
      acc,
      (i) => `row0 + ${i}`,
      (j) => `column0 + ${j} * ${tall ? 4 : 4 * LANES}u`,
      m % blockM === 0 && n % blockN === 0,
    )
  }
}`;
  return { pass: module.pass(code, groups, 2 * countOf(batch) * m * n * k), chunks, split };
}

// Four columns of B at one k.
function rightVector(
  { b, n }: Product,
  column: (j: number, c?: number) => string,
  j: number,
  k: string,
): string {
  if (b.vectors === "outer") return `b_vec(base_b, ${column(j)}, ${k})`;
  const parts = [0, 1, 2, 3].map((c) =>
    `b_at(base_b, ${c === 0 ? column(j) : `min(${column(j)} + ${c}u, ${n - 1}u)`}, ${k})`
  );
  return `vec4<f32>(${parts.join(", ")})`;
}

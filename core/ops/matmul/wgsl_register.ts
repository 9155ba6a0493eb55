/**
 * The product on a software device: each invocation holds a tile of C in registers and reads A and B
 * straight from memory, which its caches serve. Sizes and strides are parameters: products of one
 * structure (layouts, tile, whether tiles are whole) share a pipeline.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { countOf, dispatchOf, WgslModule, type WgslTarget } from "../../wgsl.ts";
import {
  type Product,
  type Side,
  sideFunctions,
  sinkOf,
  storeTile,
  type TiledPass,
} from "./wgsl_product.ts";

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
  const batches = countOf(batch);
  const tiles = batches * tilesM * tilesN;
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
  // Variables that say where the lines of A's rows and B's columns begin.
  const row = (i: number): string => `r${i}`;
  const column = (j: number, c = 0): string => `n${j}_${c}`;

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
        if (i % 4 === 0) step4.push(`let ${name} = a_vec(${row(i)}, k + ${s}u);`);
        left[i].push(`${name}.${component[i % 4]}`);
      }
    } else if (a.vectors === "inner") {
      step4.push(`let a${i} = a_vec(${row(i)}, k);`);
      for (let s = 0; s < 4; s++) left[i].push(`a${i}.${component[s]}`);
    } else {
      for (let s = 0; s < 4; s++) {
        step4.push(`let a${i}_${s} = a_at(${row(i)}, k + ${s}u);`);
        left[i].push(`a${i}_${s}`);
      }
    }
  }
  for (let j = 0; j < vectors; j++) {
    if (b.vectors === "inner") {
      for (let c = 0; c < 4; c++) step4.push(`let t${j}_${c} = b_vec(${column(j, c)}, k);`);
      for (let s = 0; s < 4; s++) {
        const parts = [0, 1, 2, 3].map((c) => `t${j}_${c}.${component[s]}`);
        step4.push(`let b${s}_${j} = vec4<f32>(${parts.join(", ")});`);
      }
    } else {
      for (let s = 0; s < 4; s++) {
        step4.push(`let b${s}_${j} = ${rightVector(b, column, j, `k + ${s}u`)};`);
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
    step1.push(`let b${j} = ${rightVector(b, column, j, "k")};`);
  }
  for (let i = 0; i < rows; i++) {
    step1.push(`let a${i} = a_at(${row(i)}, k);`);
    for (let j = 0; j < vectors; j++) step1.push(`${acc(i, j)} += a${i} * b${j};`);
  }

  const declarations: string[] = [];
  for (let i = 0; i < rows; i++) {
    // Rows past the end repeat the last ones; they are not stored. Vectors of rows stay aligned.
    const last = `m - ${alongRows ? 4 - i % 4 : 1}u`;
    declarations.push(`let ${row(i)} = a_line(base_a, min(row0 + ${i}u, ${last}));`);
    for (let j = 0; j < vectors; j++) declarations.push(`var ${acc(i, j)} = vec4<f32>();`);
  }
  for (let j = 0; j < vectors; j++) {
    const first = j * (tall ? 4 : 4 * LANES);
    for (let c = 0; c < (b.vectors === "outer" ? 1 : 4); c++) {
      const last = `n - ${b.vectors === "outer" ? 4 : 1}u`;
      declarations.push(
        `let ${column(j, c)} = b_line(base_b, min(column0 + ${first + c}u, ${last}));`,
      );
    }
  }
  const { places, groups } = placesOf(module, [tilesM, tilesN, batches, chunks], target);
  const code = `${functions.join("\n")}
${sink.code}
@compute @workgroup_size(${LANES})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${places}
  let m = ${module.parameter(m)};
  let n = ${module.parameter(n)};
  let row0 = tile_m * ${blockM}u${tall ? ` + lane * ${rows}u` : ""};
  let column0 = tile_n * ${blockN}u${tall ? "" : " + lane * 4u"};
  let base_a = a_base(batch);
  let base_b = b_base(batch);
  ${declarations.join("\n  ")}
  let length = ${module.parameter(length)};
  var k = chunk * length;
  let end = min(k + length, ${module.parameter(k)});
  for (; k + 4u <= end; k += 4u) {
    ${step4.join("\n    ")}
  }
  ${k % 4 === 0 ? "" : `for (; k < end; k++) {\n    ${step1.join("\n    ")}\n  }`}
  ${
    storeTile(
      sink,
      "m",
      "n",
      rows,
      vectors,
      acc,
      (i) => `row0 + ${i}`,
      (j) => `column0 + ${j} * ${tall ? 4 : 4 * LANES}u`,
      m % blockM === 0 && n % blockN === 0,
    )
  }
}`;
  return { pass: module.pass(code, groups, 2 * batches * m * n * k), chunks, split };
}

// Statements that say which tile, batch element and chunk a workgroup is for, and the workgroups.
// Dividing by a parameter is slow, so the dispatch has a dimension for each wherever it is long enough.
function placesOf(
  module: WgslModule,
  [tilesM, tilesN, batches, chunks]: readonly number[],
  target: WgslTarget,
): { places: string; groups: [number, number, number] } {
  const direct: [number, number, number] = [tilesN, tilesM, batches * chunks];
  if (direct.every((count) => count <= target.maxWorkgroups)) {
    const [batch, chunk] = batches === 1
      ? ["0u", "id.z"]
      : [`id.z / ${module.parameter(chunks)}`, `id.z % ${module.parameter(chunks)}`];
    return {
      places: `let tile_n = id.x;
  let tile_m = id.y;
  let batch = ${batch};
  let chunk = ${chunk};`,
      groups: direct,
    };
  }
  const groups = dispatchOf(tilesM * tilesN * batches * chunks, target);
  const size = { m: module.parameter(tilesM), n: module.parameter(tilesN) };
  const each = module.parameter(chunks);
  return {
    places: `let group = id.x + id.y * ${module.parameter(groups[0])};
  if (group >= ${module.parameter(tilesM * tilesN * batches * chunks)}) { return; }
  let tile_n = group % ${size.n};
  let tile_m = (group / ${size.n}) % ${size.m};
  let batch = group / ${size.n} / ${size.m} / ${each};
  let chunk = group / ${size.n} / ${size.m} % ${each};`,
    groups,
  };
}

// Four columns of B at one k.
function rightVector(
  b: Side,
  column: (j: number, c?: number) => string,
  j: number,
  k: string,
): string {
  if (b.vectors === "outer") return `b_vec(${column(j)}, ${k})`;
  const parts = [0, 1, 2, 3].map((c) => `b_at(${column(j, c)}, ${k})`);
  return `vec4<f32>(${parts.join(", ")})`;
}

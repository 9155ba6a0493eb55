/**
 * The product on a software device: each invocation holds a tile of C in registers and reads A and B
 * straight from memory, which its caches serve. There a load costs what a dozen multiplications do,
 * and what all lanes load alike costs as much as what each loads for itself: so lanes share out the
 * loads of the lines that they have in common, and tell each other.
 *
 * Sizes and strides are parameters: products of one structure (layouts, tile, whether tiles are whole)
 * share a pipeline.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import {
  countOf,
  dispatchOf,
  lanesOf,
  powerAbove,
  type WgslModule,
  type WgslTarget,
} from "../../wgsl.ts";
import { beginTile, type Product, type Side, storeTile, type TiledPass } from "./wgsl_product.ts";

// Lines of the side that all lanes have in common; more of them take longer to compile and are no
// faster. Where each lane loads them all, they are half as many.
const MOST_LINES = 32;

const COMPONENTS = ["x", "y", "z", "w"] as const;
/** Steps of the depth that are taken at a time. */
export const STEPS = [0, 1, 2, 3] as const;

/** Whether lanes have rows of their own, and columns in common: few stores, that an epilogue can stand in. */
export function isTurned({ m, n }: Product): boolean {
  return n <= 16 && m > n;
}

/** The pass. */
export function registerTile(
  product: Product,
  call: CallKernel,
  target: WgslTarget,
): TiledPass {
  const { m, n, k, batch } = product;
  const lanes = lanesOf(target);
  // Each lane has four columns of its own, and all have the same rows; with few columns the other way.
  const turned = isTurned(product);
  const most = target.subgroup ? MOST_LINES : MOST_LINES / 2;
  const lines = Math.min(most, Math.max(powerAbove(turned ? n : m), turned ? 4 : 1));
  const [blockM, blockN] = turned ? [4 * lanes, lines] : [lines, 4 * lanes];
  const tilesM = Math.ceil(m / blockM), tilesN = Math.ceil(n / blockN);
  const batches = countOf(batch);
  const tiles = batches * tilesM * tilesN;
  const chunks = tiles >= 8 ? 1 : Math.max(1, Math.min(Math.ceil(8 / tiles), Math.floor(k / 256)));
  const length = Math.ceil(k / chunks / 4) * 4;

  const { module, functions, sink } = beginTile(product, call, target, chunks > 1);
  const [common, own] = turned
    ? [commonLines("b", product.b, lines, module), ownLines("a", product.a)]
    : [commonLines("a", product.a, lines, module), ownLines("b", product.b)];
  const acc = (i: number): string => `c${i}`;
  const all = Array.from({ length: lines }, (_, i) => i);
  // A line's accumulator stays in a register for four steps.
  const step4 = all.flatMap((i) =>
    STEPS.map((s) => `${acc(i)} += ${common.value4(i, s)} * ${own.value4(s)};`)
  );
  const step1 = all.map((i) => `${acc(i)} += ${common.value1(i)} * ${own.value1};`);
  // The row of C that lies in the four accumulators from 4 j on as component i, where it is turned.
  const across = (i: number, j: number): string =>
    `vec4<f32>(${STEPS.map((c) => `${acc(4 * j + c)}.${COMPONENTS[i]}`).join(", ")})`;
  const { places, groups } = placesOf(module, [tilesM, tilesN, batches, chunks], target);
  const code = `${functions}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${places}
  let m = ${module.parameter(m)};
  let n = ${module.parameter(n)};
  let row0 = tile_m * ${blockM}u${turned ? ` + lane * 4u` : ""};
  let column0 = tile_n * ${blockN}u${turned ? "" : " + lane * 4u"};
  let base_a = a_base(batch);
  let base_b = b_base(batch);
  ${turned ? own.starts("row0", "m") : common.starts("row0", "m")}
  ${turned ? common.starts("column0", "n") : own.starts("column0", "n")}
  ${all.map((i) => `var ${acc(i)} = vec4<f32>();`).join("\n  ")}
  let length = ${module.parameter(length)};
  var k = chunk * length;
  let end = min(k + length, ${module.parameter(k)});
  for (; k + 4u <= end; k += 4u) {
    ${[...common.load4, ...own.load4, ...step4].join("\n    ")}
  }
  ${
    k % 4 === 0 ? "" : `for (; k < end; k++) {
    ${[...common.load1, ...own.load1, ...step1].join("\n    ")}
  }`
  }
  ${
    storeTile(
      sink,
      "m",
      "n",
      turned ? 4 : lines,
      turned ? lines / 4 : 1,
      turned ? across : acc,
      (i) => `row0 + ${i}`,
      (j) => `column0 + ${j} * 4u`,
      m % blockM === 0 && n % blockN === 0,
    )
  }
}`;
  return { pass: module.pass(code, groups, 2 * batches * m * n * k), chunks };
}

/** How a side is read in the kernel: statements, and the expressions that they make. */
export interface Reading {
  /** Says where the lines from `first` on begin; those past the last of `size` repeat others. */
  readonly starts: (first: string, size: string) => string;
  /** Loads for four steps of k, and for one. */
  readonly load4: readonly string[];
  readonly load1: readonly string[];
}

/** Lines that all lanes have in common: `value4(i, s)` is line i at k + s, a number. */
function commonLines(
  name: string,
  side: Side,
  lines: number,
  module: WgslModule,
): Reading & { value4: (i: number, s: number) => string; value1: (i: number) => string } {
  // Part e of what is to be read is read by lane e % fellows, as its load number e / fellows; without
  // subgroups each lane is on its own.
  const { subgroup } = module.target;
  const fellows = subgroup ? subgroup.size : 1;
  const lane = (parts: number): string => subgroup ? `lane % ${parts}u` : "0u";
  const load = (e: number): number => Math.floor(e / fellows);
  const told = (value: string, e: number): string =>
    subgroup ? module.broadcast(value, e % fellows) : value;
  const loads = (parts: number): number[] =>
    Array.from({ length: Math.ceil(parts / fellows) }, (_, g) => g);
  const start = (first: string, part: string, wide: number, size: string): string =>
    `${name}_line(base_${name}, min(${first} + (${part}) * ${wide}u, ${size} - ${wide}u));`;
  const single: ReturnType<typeof commonLines> = {
    starts: (first, size) =>
      loads(lines).map((g) =>
        `let l${g} = ${start(first, `${lane(lines)} + ${g * fellows}u`, 1, size)}`
      ).join("\n  "),
    load4: loads(lines).flatMap((g) =>
      STEPS.map((s) => `let h${g}_${s} = ${name}_at(l${g}, k + ${s}u);`)
    ),
    value4: (i, s) => told(`h${load(i)}_${s}`, i),
    load1: loads(lines).map((g) => `let h${g} = ${name}_at(l${g}, k);`),
    value1: (i) => told(`h${load(i)}`, i),
  };
  if (side.vectors === "inner") {
    return {
      ...single,
      load4: loads(lines).map((g) => `let h${g} = ${name}_vec(l${g}, k);`),
      value4: (i, s) => told(`h${load(i)}.${COMPONENTS[s]}`, i),
    };
  }
  if (side.vectors !== "outer" || lines < 4) return single;
  // A part is four lines at one step: part e the four from 4 (e % quads) on, at step e / quads.
  const quads = lines / 4;
  const turns = Math.max(1, quads / fellows);
  const step = (g: number): string => {
    const first = `${Math.floor(g * fellows / quads)}u`;
    return fellows > quads ? `(lane / ${quads}u + ${first}) % 4u` : first;
  };
  return {
    ...single,
    starts: (first, size) => {
      const vectors = loads(turns * fellows).map((g) =>
        `let q${g} = ${start(first, `${lane(quads)} + ${g * fellows}u`, 4, size)}`
      );
      return [single.starts(first, size), ...vectors].join("\n  ");
    },
    load4: loads(lines).map((g) => `let h${g} = ${name}_vec(q${g % turns}, k + ${step(g)});`),
    value4: (i, s) => {
      const e = s * quads + (i >> 2);
      return told(`h${load(e)}.${COMPONENTS[i & 3]}`, e);
    },
  };
}

/** Four lines for each lane: `value4(s)` is the four at k + s. */
export function ownLines(
  name: string,
  side: Side,
): Reading & { value4: (s: number) => string; value1: string } {
  const whole = side.vectors === "outer";
  const at = (k: string): string =>
    whole
      ? `${name}_vec(o0, ${k})`
      : `vec4<f32>(${STEPS.map((c) => `${name}_at(o${c}, ${k})`).join(", ")})`;
  return {
    starts: (first, size) =>
      (whole ? [0] : STEPS).map((c) =>
        `let o${c} = ${name}_line(base_${name}, min(${first} + ${c}u, ${size} - ${
          whole ? 4 : 1
        }u));`
      ).join("\n  "),
    load4: side.vectors === "inner"
      ? [
        ...STEPS.map((c) => `let t${c} = ${name}_vec(o${c}, k);`),
        ...STEPS.map((s) =>
          `let v${s} = vec4<f32>(${STEPS.map((c) => `t${c}.${COMPONENTS[s]}`).join(", ")});`
        ),
      ]
      : STEPS.map((s) => `let v${s} = ${at(`k + ${s}u`)};`),
    load1: [`let v = ${at("k")};`],
    value4: (s) => `v${s}`,
    value1: "v",
  };
}

/**
 * Statements that say which tile, batch element and chunk a workgroup is for, and the workgroups.
 * Dividing by a parameter is slow, so the dispatch has a dimension for each wherever it is long enough.
 */
export function placesOf(
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

/**
 * Products of small depth on a software device, such as LoRA's second: each invocation holds four
 * columns of B in registers and goes through rows of A in a loop. A row's code stands once, so that an
 * epilogue can stand in it: what it reads and C are then met once.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { countOf, lanesOf, type WgslPass, type WgslTarget } from "../../wgsl.ts";
import { hasVectorEpilogue } from "./wgsl_epilogue.ts";
import { beginTile, type Product } from "./wgsl_product.ts";
import { ownLines, placesOf, STEPS } from "./wgsl_register.ts";

/** Most vectors of B's columns in registers. */
const DEEPEST = 16;
/** Rows of A that share the loads of B. */
const ROWS = 64;

/** Whether {@linkcode thinDepth} computes `call`. */
export function isThinDepth({ n, k, b }: Product, call: CallKernel, target: WgslTarget): boolean {
  return target.software && k <= DEEPEST && n > 16 && n % 4 === 0 && !b.functions &&
    call.outputs[0].dtype === "f32" && (call.epilogue === null || hasVectorEpilogue(call));
}

/** The pass. */
export function thinDepth(product: Product, call: CallKernel, target: WgslTarget): WgslPass {
  const { m, n, k, batch } = product;
  const lanes = lanesOf(target);
  const tilesM = Math.ceil(m / ROWS), tilesN = Math.ceil(n / 4 / lanes);
  const batches = countOf(batch);
  const { module, functions, sink } = beginTile(product, call, target, false);
  const own = ownLines("b", product.b);
  const depths = Array.from({ length: k }, (_, s) => s);
  // B [k, 4]: whole fours of the depth first.
  const columns: string[] = [];
  for (let s = 0; s < k;) {
    const [loads, values] = s + 4 <= k
      ? [own.load4, STEPS.map((i) => own.value4(i))]
      : [own.load1, [own.value1]];
    const sets = values.map((value, i) => `w${s + i} = ${value};`);
    columns.push(`{ let k = ${s}u; ${[...loads, ...sets].join(" ")} }`);
    s += values.length;
  }
  // A's row: its elements are shared out among the lanes, which tell each other.
  const { subgroup } = target;
  const row = subgroup
    ? Array.from(
      { length: Math.ceil(k / lanes) },
      (_, g) => `let h${g} = a_at(line, min(lane + ${g * lanes}u, ${k - 1}u));`,
    )
    : depths.map((s) => `let h${s} = a_at(line, ${s}u);`);
  const element = (s: number): string =>
    subgroup ? module.broadcast(`h${Math.floor(s / lanes)}`, s % lanes) : `h${s}`;
  const { places, groups } = placesOf(module, [tilesM, tilesN, batches, 1], target);
  const code = `${functions}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${places}
  let m = ${module.parameter(m)};
  let n = ${module.parameter(n)};
  let column = (tile_n * ${lanes}u + lane) * 4u;
  let base_a = a_base(batch);
  let base_b = b_base(batch);
  ${own.starts("column", "n")}
  ${depths.map((s) => `var w${s} = vec4<f32>();`).join("\n  ")}
  ${columns.join("\n  ")}
  ${sink.columns("column")}
  let origin = ${sink.origin};
  let end = min(tile_m * ${ROWS}u + ${ROWS}u, m);
  for (var row = tile_m * ${ROWS}u; row < end; row++) {
    let line = a_line(base_a, row);
    ${row.join("\n    ")}
    var acc = vec4<f32>();
    ${depths.map((s) => `acc += ${element(s)} * w${s};`).join("\n    ")}
    let at = origin + row * n + column;
    ${n % (4 * lanes) === 0 ? "{" : "if (column < n) {"}
      ${sink.vector("at", "acc")}
    }
  }
}`;
  return module.pass(code, groups, 2 * batches * m * n * k);
}

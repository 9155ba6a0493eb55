/**
 * Attention forward for few queries, as in generation: a workgroup for each query of a head. Each
 * invocation scores one key of a block of 64, then sums one depth over the block.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { dispatchOf, WgslModule, type WgslPass, type WgslTarget } from "../../wgsl.ts";
import { maskFunctions, type Rows, rowsOf, sizesOf } from "./wgsl_blocks.ts";

const KEYS = 64;

/** The pass over single queries. */
export function decodePass(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth, scale } = sizes;
  const module = new WgslModule(target, call.scalars);
  const q = rowsOf(module, call, 0, "q");
  const k = rowsOf(module, call, 1, "k");
  const v = rowsOf(module, call, 2, "v");
  const functions = [q.code, k.code, v.code, maskFunctions(module, call, sizes)];
  const out = module.array({ kind: "output", index: 0 }, "f32", "write");
  const lse = module.array({ kind: "output", index: 1 }, "f32", "write");
  const log = module.use("log_f32");
  const count = batch * heads * queries;
  const groups = dispatchOf(count, target);
  // Depths an invocation sums.
  const turns = Array.from({ length: Math.ceil(depth / KEYS) }, (_, j) => j);
  const code = `var<workgroup> query: array<f32, ${depth}>;
var<workgroup> weights: array<f32, ${KEYS}>;
${functions.join("\n")}
@compute @workgroup_size(${KEYS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let index = id.x + id.y * ${groups[0]}u;
  if (index >= ${count}u) { return; }
  let b = i32(index / ${heads * queries}u);
  let h = i32((index / ${queries}u) % ${heads}u);
  let row = i32(index % ${queries}u);
  let base_q = q_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  for (var d = local; d < ${depth}u; d += ${KEYS}u) { query[d] = ${one(q, "row", "d")}; }
  var top = -1e30;
  var sum = 0.0;
  ${turns.map((j) => `var o${j} = 0.0;`).join("\n  ")}
  let end = end_key(row);
  for (var key0 = first_key(row); key0 < end; key0 += ${KEYS}) {
    workgroupBarrier();
    let key = key0 + i32(local);
    let ok = may(b, h, row, key);
    var s = -1e30;
    if (ok) {
      var product = 0.0;
      ${
    k.vectors
      ? `for (var d = 0u; d < ${depth}u; d += 4u) {
        let w = vec4<f32>(query[d], query[d + 1u], query[d + 2u], query[d + 3u]);
        product += dot(w, k_vec(base_k, key, i32(d)));
      }`
      : `for (var d = 0u; d < ${depth}u; d++) { product += query[d] * k_at(base_k, key, i32(d)); }`
  }
      s = product * ${scale};
    }
    weights[local] = s;
    workgroupBarrier();
    var next = top;
    for (var c = 0u; c < ${KEYS}u; c++) { next = max(next, weights[c]); }
    workgroupBarrier();
    weights[local] = select(0.0, exp(s - next), ok);
    workgroupBarrier();
    let shrink = exp(top - next);
    top = next;
    sum *= shrink;
    ${turns.map((j) => `o${j} *= shrink;`).join(" ")}
    let filled = u32(min(${KEYS}, end - key0));
    for (var c = 0u; c < filled; c++) {
      let w = weights[c];
      sum += w;
      ${
    turns.map((j) =>
      `${(j + 1) * KEYS > depth ? `if (local + ${j * KEYS}u < ${depth}u) ` : ""}{ o${j} += w * ${
        one(v, "key0 + i32(c)", `local + ${j * KEYS}u`)
      }; }`
    ).join("\n      ")
  }
    }
  }
  let part = select(0.0, 1.0 / sum, sum > 0.0);
  let origin = u32((b * ${queries} + row) * ${heads} + h) * ${depth}u;
  ${
    turns.map((j) =>
      `if (local + ${j * KEYS}u < ${depth}u) { ${
        out.store(`origin + local + ${j * KEYS}u`, `o${j} * part`)
      } }`
    ).join("\n  ")
  }
  if (local == 0u) {
    var result = 0.0;
    if (sum > 0.0) { result = top + ${log}(sum); }
    let at = u32((b * ${heads} + h) * ${queries} + row);
    ${lse.store("at", "result")}
  }
}`;
  return module.pass(code, groups, 4 * batch * heads * queries * keys * depth);
}

// One depth of a row, whether or not the input is bound in vectors.
function one({ name, vectors }: Rows, row: string, d: string): string {
  return vectors
    ? `${name}_vec(base_${name}, ${row}, i32((${d}) & ~3u))[(${d}) & 3u]`
    : `${name}_at(base_${name}, ${row}, i32(${d}))`;
}

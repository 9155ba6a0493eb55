/**
 * Attention forward: a workgroup for each 32 queries of a head, over blocks of 32 keys, with a running
 * maximum and sum for each query.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { dispatchOf, WgslModule, type WgslPass, type WgslTarget } from "../../wgsl.ts";
import {
  accumulate,
  accumulators,
  BLOCK,
  dot,
  maskFunctions,
  rowsFunctions,
  SIZE,
  sizesOf,
  storeRows,
  TILES,
  weightAt,
} from "./wgsl_blocks.ts";

/** The pass over blocks of queries. */
export function forwardPass(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth, chunks, scale } = sizes;
  const module = new WgslModule(target, call.scalars);
  const functions = [
    rowsFunctions(module, call.inputs[0], 0, "q"),
    rowsFunctions(module, call.inputs[1], 1, "k"),
    rowsFunctions(module, call.inputs[2], 2, "v"),
    maskFunctions(module, call, sizes),
  ];
  const out = module.array({ kind: "output", index: 0 }, "f32", "write");
  const lse = module.array({ kind: "output", index: 1 }, "f32", "write");
  const log = module.use("log_f32");
  const tiles = Math.ceil(queries / BLOCK);
  const count = batch * heads * tiles;
  const groups = dispatchOf(count, target);
  const query = { name: "q", row0: "row0", limit: `${queries}` };
  const key = { name: "k", row0: "key0", limit: "end" };
  const value = { name: "v", row0: "key0", limit: "end" };
  const four = [0, 1, 2, 3];
  const scaleOutputs = Array.from(
    { length: chunks },
    (_, j) => `o${j}_0 *= shrink.x; o${j}_1 *= shrink.y;`,
  );
  const code = `${TILES}
${functions.join("\n")}
@compute @workgroup_size(${SIZE})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let index = id.x + id.y * ${groups[0]}u;
  if (index >= ${count}u) { return; }
  let tr = local / 8u;
  let tc = local % 8u;
  let b = i32(index / ${heads * tiles}u);
  let h = i32((index / ${tiles}u) % ${heads}u);
  // The last queries have the most keys: they start first.
  let row0 = i32(${tiles - 1}u - index % ${tiles}u) * ${BLOCK};
  let row = row0 + i32(tr) * 2;
  let base_q = q_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  var top = vec2<f32>(-1e30);
  var sum = vec2<f32>();
  ${accumulators("o", chunks)}
  let end = end_key(min(row0 + ${BLOCK - 1}, ${queries - 1}));
  for (var key0 = first_key(row0) / ${BLOCK} * ${BLOCK}; key0 < end; key0 += ${BLOCK}) {
    ${dot(query, key, depth, "s")}
    let column = key0 + i32(tc) * 4;
    var ok0 = vec4<bool>();
    var ok1 = vec4<bool>();
    for (var c = 0; c < 4; c++) {
      ok0[c] = may(b, h, row, column + c);
      ok1[c] = may(b, h, row + 1, column + c);
    }
    s0 = select(vec4<f32>(-1e30), s0 * ${scale}, ok0);
    s1 = select(vec4<f32>(-1e30), s1 * ${scale}, ok1);
    ${
    four.map((c) => `${weightAt(`tc * 4u + ${c}u`)} = vec2<f32>(s0[${c}], s1[${c}]);`).join(
      "\n    ",
    )
  }
    workgroupBarrier();
    var next = top;
    for (var c = 0u; c < ${BLOCK}u; c++) { next = max(next, ${weightAt("c")}); }
    workgroupBarrier();
    // A masked pair weighs nothing even where all of its row is masked and the maximum is -1e30.
    s0 = select(vec4<f32>(), exp(s0 - next.x), ok0);
    s1 = select(vec4<f32>(), exp(s1 - next.y), ok1);
    ${
    four.map((c) => `${weightAt(`tc * 4u + ${c}u`)} = vec2<f32>(s0[${c}], s1[${c}]);`).join(
      "\n    ",
    )
  }
    let shrink = exp(top - next);
    top = next;
    sum = sum * shrink + vec2<f32>(s0.x + s0.y + s0.z + s0.w, s1.x + s1.y + s1.z + s1.w);
    ${scaleOutputs.join("\n    ")}
    ${accumulate(value, depth, chunks, "o")}
  }
  // Each invocation summed its own columns.
  workgroupBarrier();
  ${weightAt("tc")} = sum;
  workgroupBarrier();
  sum = vec2<f32>();
  for (var c = 0u; c < 8u; c++) { sum += ${weightAt("c")}; }
  let part0 = select(0.0, 1.0 / sum.x, sum.x > 0.0);
  let part1 = select(0.0, 1.0 / sum.y, sum.y > 0.0);
  ${
    storeRows(
      (at, v) => out.store(at, v),
      { rows: queries, heads, depth, chunks },
      "h",
      "o",
      "part",
    )
  }
  if (tc < 2u && row + i32(tc) < ${queries}) {
    let at = u32((b * ${heads} + h) * ${queries} + row + i32(tc));
    let total = select(sum.x, sum.y, tc == 1u);
    let highest = select(top.x, top.y, tc == 1u);
    var result = 0.0;
    if (total > 0.0) { result = highest + ${log}(total); }
    ${lse.store("at", "result")}
  }
}`;
  return module.pass(code, groups, 4 * batch * heads * queries * keys * depth);
}

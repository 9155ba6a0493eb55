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
  type BlockSide,
  dot,
  maskFunctions,
  ROWS,
  rowsOf,
  SIZE,
  sizesOf,
  storeRows,
  storeWeights,
  TILES,
  weightAt,
} from "./wgsl_blocks.ts";

/** The pass over blocks of queries. */
export function forwardPass(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth, chunks, scale } = sizes;
  const module = new WgslModule(target, call.scalars);
  const q = rowsOf(module, call, 0, "q");
  const k = rowsOf(module, call, 1, "k");
  const v = rowsOf(module, call, 2, "v");
  const functions = [q.code, k.code, v.code, maskFunctions(module, call, sizes)];
  const out = module.array({ kind: "output", index: 0 }, "f32", "write");
  const lse = module.array({ kind: "output", index: 1 }, "f32", "write");
  const log = module.use("log_f32");
  const tiles = Math.ceil(queries / BLOCK);
  const count = batch * heads * tiles;
  const groups = dispatchOf(count, target);
  const query: BlockSide = { rows: q, row0: "row0", limit: `${queries}` };
  const key: BlockSide = { rows: k, row0: "key0", limit: "end" };
  const value: BlockSide = { rows: v, row0: "key0", limit: "end" };
  const each = (text: (r: number) => string): string => ROWS.map(text).join("\n    ");
  const shrinkAll = Array.from(
    { length: chunks },
    (_, j) => ROWS.map((r) => `o${j}_${r} *= shrink[${r}];`).join(" "),
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
  let row = row0 + i32(tr) * 4;
  let base_q = q_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  // Of each row: the highest score so far, and the sum of exp(score - highest) in own columns.
  var top = vec4<f32>(-1e30);
  var sum = vec4<f32>();
  ${accumulators("o", chunks)}
  let end = end_key(min(row0 + ${BLOCK - 1}, ${queries - 1}));
  for (var key0 = first_key(row0) / ${BLOCK} * ${BLOCK}; key0 < end; key0 += ${BLOCK}) {
    ${dot(query, key, depth, "s")}
    let column = key0 + i32(tc) * 4;
    ${each((r) => `var ok${r} = vec4<bool>();`)}
    for (var c = 0; c < 4; c++) {
      ${each((r) => `ok${r}[c] = may(b, h, row + ${r}, column + c);`)}
    }
    ${each((r) => `s${r} = select(vec4<f32>(-1e30), s${r} * ${scale}, ok${r});`)}
    ${storeWeights("s")}
    workgroupBarrier();
    var next = top;
    for (var c = 0u; c < ${BLOCK}u; c++) { next = max(next, ${weightAt("c")}); }
    workgroupBarrier();
    // A masked pair weighs nothing even where all of its row is masked and the maximum is -1e30.
    ${each((r) => `s${r} = select(vec4<f32>(), exp(s${r} - next[${r}]), ok${r});`)}
    ${storeWeights("s")}
    let shrink = exp(top - next);
    top = next;
    sum = sum * shrink + vec4<f32>(${
    ROWS.map((r) => `s${r}.x + s${r}.y + s${r}.z + s${r}.w`).join(", ")
  });
    ${shrinkAll.join("\n    ")}
    ${accumulate(value, depth, chunks, "o")}
  }
  // Each invocation summed its own columns.
  workgroupBarrier();
  ${weightAt("tc")} = sum;
  workgroupBarrier();
  sum = vec4<f32>();
  for (var c = 0u; c < 8u; c++) { sum += ${weightAt("c")}; }
  let part = select(vec4<f32>(), 1.0 / sum, sum > vec4<f32>());
  ${
    storeRows(
      (at, x) => out.store(at, x),
      { rows: queries, heads, depth, chunks },
      "h",
      "o",
      "part",
    )
  }
  if (tc < 4u && row + i32(tc) < ${queries}) {
    let at = u32((b * ${heads} + h) * ${queries} + row + i32(tc));
    var result = 0.0;
    if (sum[tc] > 0.0) { result = top[tc] + ${log}(sum[tc]); }
    ${lse.store("at", "result")}
  }
}`;
  return module.pass(code, groups, 4 * batch * heads * queries * keys * depth);
}

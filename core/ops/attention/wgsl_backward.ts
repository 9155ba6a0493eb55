/**
 * The gradient of attention. With P = exp(scale · Q Kᵀ - lse) recomputed block by block,
 * dS = P ∘ (dO Vᵀ - delta) · scale, dQ = dS K, dK = dSᵀ Q and dV = Pᵀ dO.
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
  vectorFunction,
  weightAt,
} from "./wgsl_blocks.ts";

const FOUR = [0, 1, 2, 3];

/** dq: a workgroup for each 32 queries of a head, over blocks of keys. */
export function queryGradientPass(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth, chunks, scale } = sizes;
  const module = new WgslModule(target, call.scalars);
  const functions = inputFunctions(module, call, true);
  const out = module.array({ kind: "output", index: 0 }, "f32", "write");
  const tiles = Math.ceil(queries / BLOCK);
  const count = batch * heads * tiles;
  const groups = dispatchOf(count, target);
  const query = { name: "q", row0: "row0", limit: `${queries}` };
  const key = { name: "k", row0: "key0", limit: "end" };
  const value = { name: "v", row0: "key0", limit: "end" };
  const dout = { name: "dout", row0: "row0", limit: `${queries}` };
  const code = `${TILES}
${functions}
@compute @workgroup_size(${SIZE})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let index = id.x + id.y * ${groups[0]}u;
  if (index >= ${count}u) { return; }
  let tr = local / 8u;
  let tc = local % 8u;
  let b = i32(index / ${heads * tiles}u);
  let h = i32((index / ${tiles}u) % ${heads}u);
  let row0 = i32(${tiles - 1}u - index % ${tiles}u) * ${BLOCK};
  let row = row0 + i32(tr) * 2;
  let base_q = q_base(b, h);
  let base_dout = dout_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  // Rows past the end repeat the last one; they are not stored.
  let safe0 = min(row, ${queries - 1});
  let safe1 = min(row + 1, ${queries - 1});
  let lse0 = lse_at(b, h, safe0);
  let lse1 = lse_at(b, h, safe1);
  let delta0 = delta_at(b, h, safe0);
  let delta1 = delta_at(b, h, safe1);
  ${accumulators("g", chunks)}
  let end = end_key(min(row0 + ${BLOCK - 1}, ${queries - 1}));
  for (var key0 = first_key(row0) / ${BLOCK} * ${BLOCK}; key0 < end; key0 += ${BLOCK}) {
    ${dot(query, key, depth, "s")}
    ${dot(dout, value, depth, "p")}
    workgroupBarrier();
    let column = key0 + i32(tc) * 4;
    for (var c = 0; c < 4; c++) {
      var w = vec2<f32>();
      if (may(b, h, row, column + c)) {
        w.x = exp(s0[c] * ${scale} - lse0) * (p0[c] - delta0) * ${scale};
      }
      if (may(b, h, row + 1, column + c)) {
        w.y = exp(s1[c] * ${scale} - lse1) * (p1[c] - delta1) * ${scale};
      }
      ${weightAt("tc * 4u + u32(c)")} = w;
    }
    ${accumulate(key, depth, chunks, "g")}
  }
  let one0 = 1.0;
  let one1 = 1.0;
  ${
    storeRows((at, v) => out.store(at, v), { rows: queries, heads, depth, chunks }, "h", "g", "one")
  }
}`;
  return module.pass(code, groups, 6 * batch * heads * queries * keys * depth);
}

/** dk, dv or both: a workgroup for each 32 keys of a key head, over its queries in every head. */
export function keyGradientPass(
  call: CallKernel,
  target: WgslTarget,
  { dk, dv }: { dk: boolean; dv: boolean },
): WgslPass {
  const sizes = sizesOf(call);
  const { batch, keyHeads, group, queries, keys, depth, chunks, scale, causal, window } = sizes;
  const module = new WgslModule(target, call.scalars);
  const functions = inputFunctions(module, call, dk);
  const outK = dk ? module.array({ kind: "output", index: 1 }, "f32", "write") : null;
  const outV = dv ? module.array({ kind: "output", index: 2 }, "f32", "write") : null;
  const tiles = Math.ceil(keys / BLOCK);
  const count = batch * keyHeads * tiles;
  const groups = dispatchOf(count, target);
  // Rows are keys here, columns queries.
  const key = { name: "k", row0: "row0", limit: "limit()" };
  const value = { name: "v", row0: "row0", limit: "limit()" };
  const query = { name: "q", row0: "query0", limit: `${queries}` };
  const dout = { name: "dout", row0: "query0", limit: `${queries}` };
  const rows = { rows: keys, heads: keyHeads, depth, chunks };
  const shift = `(${module.scalar(0)} - ${queries})`;
  const code = `${TILES}
${functions}
@compute @workgroup_size(${SIZE})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let index = id.x + id.y * ${groups[0]}u;
  if (index >= ${count}u) { return; }
  let tr = local / 8u;
  let tc = local % 8u;
  let b = i32(index / ${keyHeads * tiles}u);
  let hk = i32((index / ${tiles}u) % ${keyHeads}u);
  let row0 = i32(index % ${tiles}u) * ${BLOCK};
  let row = row0 + i32(tr) * 2;
  let base_k = k_base(b, hk);
  ${dk ? "let base_v = v_base(b, hk);" : ""}
  ${dk ? accumulators("gk", chunks) : ""}
  ${dv ? accumulators("gv", chunks) : ""}
  // The queries that see some key of the block.
  let first_query = ${causal ? `max(0, row0 - ${shift})` : "0"};
  var end_query = ${
    window > 0 ? `min(${queries}, row0 + ${BLOCK - 1 + window} - ${shift})` : `${queries}`
  };
  if (row0 >= limit()) { end_query = 0; }
  for (var h = hk * ${group}; h < (hk + 1) * ${group}; h++) {
    let base_q = q_base(b, h);
    let base_dout = dout_base(b, h);
    for (var query0 = first_query / ${BLOCK} * ${BLOCK}; query0 < end_query; query0 += ${BLOCK}) {
      ${dot(key, query, depth, "s")}
      ${dk ? dot(value, dout, depth, "p") : ""}
      workgroupBarrier();
      let column = query0 + i32(tc) * 4;
      for (var c = 0; c < 4; c++) {
        let at = min(column + c, ${queries - 1});
        let lse = lse_at(b, h, at);
        s0[c] = select(0.0, exp(s0[c] * ${scale} - lse), may(b, h, column + c, row));
        s1[c] = select(0.0, exp(s1[c] * ${scale} - lse), may(b, h, column + c, row + 1));
        ${
    dk
      ? `let delta = delta_at(b, h, at);
        p0[c] = s0[c] * (p0[c] - delta) * ${scale};
        p1[c] = s1[c] * (p1[c] - delta) * ${scale};`
      : ""
  }
      }
      ${
    dv
      ? `${
        FOUR.map((c) => `${weightAt(`tc * 4u + ${c}u`)} = vec2<f32>(s0[${c}], s1[${c}]);`).join(
          "\n      ",
        )
      }
      ${accumulate(dout, depth, chunks, "gv")}
      workgroupBarrier();`
      : ""
  }
      ${
    dk
      ? `${
        FOUR.map((c) => `${weightAt(`tc * 4u + ${c}u`)} = vec2<f32>(p0[${c}], p1[${c}]);`).join(
          "\n      ",
        )
      }
      ${accumulate(query, depth, chunks, "gk")}`
      : ""
  }
    }
  }
  let one0 = 1.0;
  let one1 = 1.0;
  ${outK ? storeRows((at, v) => outK.store(at, v), rows, "hk", "gk", "one") : ""}
  ${outV ? storeRows((at, v) => outV.store(at, v), rows, "hk", "gv", "one") : ""}
}`;
  const products = 2 + (dk ? 4 : 0) + (dv ? 2 : 0);
  return module.pass(code, groups, products * batch * keyHeads * group * queries * keys * depth);
}

// Access to the inputs: q, k, v, (mask), dout, lse, delta. Without dS, v and delta are not bound.
function inputFunctions(module: WgslModule, call: CallKernel, withScores: boolean): string {
  const sizes = sizesOf(call);
  const { inputs } = call;
  const after = sizes.masked ? 4 : 3;
  const functions = [
    rowsFunctions(module, inputs[0], 0, "q"),
    rowsFunctions(module, inputs[1], 1, "k"),
    rowsFunctions(module, inputs[after], after, "dout"),
    vectorFunction(module, inputs[after + 1], after + 1, "lse"),
    maskFunctions(module, call, sizes),
  ];
  if (withScores) {
    functions.push(
      rowsFunctions(module, inputs[2], 2, "v"),
      vectorFunction(module, inputs[after + 2], after + 2, "delta"),
    );
  }
  return functions.join("\n");
}

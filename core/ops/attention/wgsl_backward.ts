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
  type BlockSide,
  dot,
  gradientInputs,
  ROWS,
  SIZE,
  sizesOf,
  storeRows,
  storeWeights,
  TILES,
} from "./wgsl_blocks.ts";

const each = (text: (r: number) => string): string => ROWS.map(text).join("\n        ");

/** dq: a workgroup for each 32 queries of a head, over blocks of keys. */
export function queryGradientPass(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth, chunks, scale } = sizes;
  const module = new WgslModule(target, call.scalars);
  const { q, k, v, dout: d, code: functions } = gradientInputs(module, call, sizes, true);
  const out = module.array({ kind: "output", index: 0 }, "f32", "write");
  const tiles = Math.ceil(queries / BLOCK);
  const count = batch * heads * tiles;
  const groups = dispatchOf(count, target);
  const query: BlockSide = { rows: q, row0: "row0", limit: `${queries}` };
  const key: BlockSide = { rows: k, row0: "key0", limit: "end" };
  const value: BlockSide = { rows: v, row0: "key0", limit: "end" };
  const dout: BlockSide = { rows: d, row0: "row0", limit: `${queries}` };
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
  let row = row0 + i32(tr) * 4;
  let base_q = q_base(b, h);
  let base_dout = dout_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  // Rows past the end repeat the last one; they are not stored.
  var lse = vec4<f32>();
  var delta = vec4<f32>();
  for (var r = 0; r < 4; r++) {
    lse[r] = lse_at(b, h, min(row + r, ${queries - 1}));
    delta[r] = delta_at(b, h, min(row + r, ${queries - 1}));
  }
  ${accumulators("g", chunks)}
  let end = end_key(min(row0 + ${BLOCK - 1}, ${queries - 1}));
  for (var key0 = first_key(row0) / ${BLOCK} * ${BLOCK}; key0 < end; key0 += ${BLOCK}) {
    ${dot(query, key, depth, "s")}
    ${dot(dout, value, depth, "p")}
    workgroupBarrier();
    let column = key0 + i32(tc) * 4;
    for (var c = 0; c < 4; c++) {
      ${
    each((r) =>
      `s${r}[c] = select(0.0, exp(s${r}[c] * ${scale} - lse[${r}]) * (p${r}[c] - delta[${r}]) * ${scale},
          may(b, h, row + ${r}, column + c));`
    )
  }
    }
    ${storeWeights("s")}
    ${accumulate(key, depth, chunks, "g")}
  }
  ${storeRows((at, v) => out.store(at, v), { rows: queries, heads, depth, chunks }, "h", "g", null)}
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
  const { q, k, v, dout: d, code: functions } = gradientInputs(module, call, sizes, dk);
  const outK = dk ? module.array({ kind: "output", index: 1 }, "f32", "write") : null;
  const outV = dv ? module.array({ kind: "output", index: 2 }, "f32", "write") : null;
  const tiles = Math.ceil(keys / BLOCK);
  const count = batch * keyHeads * tiles;
  const groups = dispatchOf(count, target);
  // Rows are keys here, columns queries.
  const key: BlockSide = { rows: k, row0: "row0", limit: "limit()" };
  const value: BlockSide = { rows: v, row0: "row0", limit: "limit()" };
  const query: BlockSide = { rows: q, row0: "query0", limit: `${queries}` };
  const dout: BlockSide = { rows: d, row0: "query0", limit: `${queries}` };
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
  let row = row0 + i32(tr) * 4;
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
        ${
    each((r) =>
      `s${r}[c] = select(0.0, exp(s${r}[c] * ${scale} - lse), may(b, h, column + c, row + ${r}));`
    )
  }
        ${
    dk
      ? `let delta = delta_at(b, h, at);
        ${each((r) => `p${r}[c] = s${r}[c] * (p${r}[c] - delta) * ${scale};`)}`
      : ""
  }
      }
      ${
    dv
      ? `${storeWeights("s")}
      ${accumulate(dout, depth, chunks, "gv")}
      workgroupBarrier();`
      : ""
  }
      ${
    dk
      ? `${storeWeights("p")}
      ${accumulate(query, depth, chunks, "gk")}`
      : ""
  }
    }
  }
  ${outK ? storeRows((at, v) => outK.store(at, v), rows, "hk", "gk", null) : ""}
  ${outV ? storeRows((at, v) => outV.store(at, v), rows, "hk", "gv", null) : ""}
}`;
  const products = 2 + (dk ? 4 : 0) + (dv ? 2 : 0);
  return module.pass(code, groups, products * batch * keyHeads * group * queries * keys * depth);
}

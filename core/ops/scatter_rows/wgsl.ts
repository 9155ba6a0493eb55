/**
 * Scattered rows in WGSL: one pass clears, a second adds. On a real GPU the first source row that names
 * a target row sums all that do; on a software device an invocation adds all rows of its columns. Both
 * add in the order of the source, so there is no race and no atomic, and results repeat to the bit.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import {
  countOf,
  dispatchOf,
  WgslModule,
  type WgslPass,
  type WgslProgram,
  type WgslTarget,
} from "../../wgsl.ts";

const SIZE = 64;

// Invocations of a workgroup on a software device: the driver's vector width.
const LANES = 8;

/** The program of scattered rows: index [N], source [N, D] → [V, D]. */
export function scatterRowsWgsl(call: CallKernel, target: WgslTarget): WgslProgram {
  const passes: WgslPass[] = [];
  if (countOf(call.outputs[0].shape) > 0) {
    passes.push(clear(call, target));
    if (countOf(call.inputs[1].shape) > 0) {
      passes.push(target.software ? addByColumn(call, target) : add(call, target));
    }
  }
  return { passes, workspace: 0 };
}

function clear(call: CallKernel, target: WgslTarget): WgslPass {
  const module = new WgslModule(target);
  const count = countOf(call.outputs[0].shape);
  const width = count % 4 === 0 ? 4 : 1;
  const out = module.bind({ kind: "output", index: 0 }, width === 4 ? "vec4<f32>" : "f32", true);
  const size = target.software ? 64 : 256;
  const groups = dispatchOf(Math.ceil(count / width / size), target);
  const code = `@compute @workgroup_size(${size})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x + id.y * ${groups[0] * size}u;
  if (at < ${count / width}u) { ${out}[at] = ${width === 4 ? "vec4<f32>()" : "0.0"}; }
}`;
  return module.pass(code, groups, count);
}

/** The rows that name a target row are summed by the first of them, found by a search. */
function add(call: CallKernel, target: WgslTarget): WgslPass {
  const [index, source] = call.inputs;
  const [rows, depth] = call.outputs[0].shape;
  const n = index.shape[0];
  const module = new WgslModule(target);
  const indices = module.array({ kind: "input", index: 0 }, index.dtype);
  const sources = module.array({ kind: "input", index: 1 }, source.dtype);
  const out = module.array({ kind: "output", index: 0 }, call.outputs[0].dtype, "write");
  const at = (i: string): string =>
    indices.load(`${index.offset}u + (${i}) * ${index.strides[0]}u`);
  const groups = dispatchOf(n, target);
  const code = `var<workgroup> taken: u32;
@compute @workgroup_size(${SIZE})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let me = id.x + id.y * ${groups[0]}u;
  if (me >= ${n}u) { return; }
  let row = i32(${at("me")});
  if (row < 0 || row >= ${rows}) { return; }
  // An earlier source row of the same target does the work.
  var earlier = false;
  for (var i = local; i < me; i += ${SIZE}u) { earlier = earlier || i32(${at("i")}) == row; }
  if (earlier) { taken = 1u; }
  workgroupBarrier();
  if (workgroupUniformLoad(&taken) != 0u) { return; }
  for (var d0 = 0u; d0 < ${depth}u; d0 += ${SIZE}u) {
    let d = d0 + local;
    if (d >= ${depth}u) { break; }
    var total = 0.0;
    for (var i = me; i < ${n}u; i++) {
      if (i32(${at("i")}) == row) {
        total += ${
    sources.load(
      `${source.offset}u + i * ${source.strides[0]}u + d * ${source.strides[1]}u`,
    )
  };
      }
    }
    ${out.store(`u32(row) * ${depth}u + d`, "total")}
  }
}`;
  return module.pass(code, groups, n * n);
}

/** Each invocation walks the source rows in order and adds its columns, four where they align. */
function addByColumn(call: CallKernel, target: WgslTarget): WgslPass {
  const [index, source] = call.inputs;
  const [rows, depth] = call.outputs[0].shape;
  const n = index.shape[0];
  const width = depth % 4 === 0 && source.offset % 4 === 0 ? 4 : 1;
  const type = width === 4 ? "vec4<f32>" : "f32";
  const module = new WgslModule(target);
  const indices = module.array({ kind: "input", index: 0 }, index.dtype);
  const sources = module.bind({ kind: "input", index: 1 }, type);
  const out = module.bind({ kind: "output", index: 0 }, type, true);
  const columns = depth / width;
  const groups = dispatchOf(Math.ceil(columns / LANES), target);
  const code = `@compute @workgroup_size(${LANES})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let column = id.x + id.y * ${groups[0] * LANES}u;
  if (column >= ${columns}u) { return; }
  for (var i = 0u; i < ${n}u; i++) {
    let row = ${indices.load(`${index.offset}u + i`)};
    if (row >= 0 && row < ${rows}) {
      let at = u32(row) * ${columns}u + column;
      ${out}[at] += ${sources}[${source.offset / width}u + i * ${columns}u + column];
    }
  }
}`;
  return module.pass(code, groups, n * depth);
}

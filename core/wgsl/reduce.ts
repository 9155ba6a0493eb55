/**
 * Reductions. A workgroup is a table of `lanes` invocations for each of `columns` outputs; each
 * invocation combines every `lanes`-th term, and a tree in workgroup memory combines the lanes.
 * Where there are few outputs, the terms are cut into chunks whose results lie in the workspace until
 * a second pass combines them. The order of combination is fixed, so results repeat to the bit. A
 * software device takes four neighbouring terms or outputs at a time, where they are loaded as one.
 *
 * @module
 */

import { bytesOf, type DType, type Register } from "../dtype.ts";
import { accessesOf, constant, type Expr } from "../expr.ts";
import type { LoopKernel, Write } from "../kernel.ts";
import { addressOf, emitExpr, literalOf } from "./expr.ts";
import { WgslModule } from "./module.ts";
import { type Aliases, epilogueFunction, slotTerm, WgslInputs, wgslType } from "./pointwise.ts";
import {
  dispatchOf,
  lanesOf,
  powerAbove,
  powerBelow,
  type WgslPass,
  type WgslProgram,
  type WgslTarget,
} from "./program.ts";
import { collapse, coordinatesOf, countOf, type Space } from "./space.ts";
import { foursOf, readsFours } from "./vectors.ts";

/** How two terms are combined. */
export type Combine = "sum" | "prod" | "max" | "min";

/** A reduction, of a loop kernel or on behalf of a hand-written one. */
export interface Reduction {
  readonly shape: readonly number[];
  readonly reduced: number;
  readonly combine: Combine;
  readonly body: Expr;
  readonly inputs: readonly DType[];
  readonly scalars: readonly Register[];
  readonly output: DType;
  readonly write: Write;
  readonly aliases: Aliases;
  /** Applied to each result, over `outputShape`; the write must then be contiguous. */
  readonly epilogue?: Expr;
  readonly outputShape?: readonly number[];
}

/** The program of a loop kernel that reduces. */
export function reduceWgsl(
  kernel: LoopKernel,
  aliases: Aliases,
  target: WgslTarget,
): WgslProgram {
  return reductionWgsl({ ...kernel, combine: kernel.combine!, aliases }, target);
}

interface Layout {
  readonly columns: number;
  readonly lanes: number;
  /** Whether neighbouring invocations take neighbouring outputs, else neighbouring terms. */
  readonly acrossOutputs: boolean;
  readonly chunks: number;
  /** Terms in a chunk. */
  readonly length: number;
  /** Whether an invocation takes four neighbouring outputs or terms at a time. */
  readonly fours: boolean;
}

/** The program of `reduction`. */
export function reductionWgsl(reduction: Reduction, target: WgslTarget): WgslProgram {
  const border = reduction.shape.length - reduction.reduced;
  const outputs = countOf(reduction.shape.slice(0, border));
  const terms = countOf(reduction.shape.slice(border));
  if (outputs === 0) return { passes: [], workspace: 0 };
  const space = collapse({
    shape: reduction.shape,
    reduced: reduction.reduced,
    bodies: [reduction.body],
    write: reduction.write.strides,
  });
  const layout = layoutOf(space, outputs, terms, target);
  const plain = { ...reduction, write: { ...reduction.write, strides: space.write } };
  if (layout.chunks === 1) {
    return { passes: [pass(plain, space, layout, "whole", target)], workspace: 0 };
  }
  const second: Space = {
    shape: [...space.shape.slice(0, space.shape.length - space.reduced), layout.chunks],
    reduced: 1,
    bodies: [constant(reduction.body.type, 0)],
    write: space.write,
  };
  return {
    passes: [
      pass(plain, space, layout, "chunks", target),
      pass(plain, second, layoutOfChunks(outputs, layout.chunks, target), "combine", target),
    ],
    workspace: 4 * outputs * layout.chunks,
  };
}

// Terms of a reduction across rows that a CPU's caches hold. Beyond, its time goes into waiting for
// memory, and four columns at a time wait for more of it.
const CACHED = 2 ** 20;

// Terms that a lane of a software device walks by itself.
const ALONE = 1024;

function layoutOf(space: Space, outputs: number, terms: number, target: WgslTarget): Layout {
  const rank = space.shape.length;
  const border = rank - space.reduced;
  // Which dimension do the loads walk in steps of one?
  let alongTerms = 0, alongOutputs = 0;
  for (const a of accessesOf(...space.bodies)) {
    if (space.reduced > 0 && Math.abs(a.strides[rank - 1]) === 1) alongTerms++;
    if (border > 0 && Math.abs(a.strides[border - 1]) === 1) alongOutputs++;
  }
  const acrossOutputs = alongOutputs > alongTerms;
  const most = Math.min(target.maxInvocations, target.software ? 64 : 256);
  const fours = target.software && space.bodies[0].type !== "bool" &&
    !(acrossOutputs && outputs * terms > CACHED) &&
    readsFours(space, (acrossOutputs ? border : rank) - 1);
  if (fours && acrossOutputs) outputs /= 4;
  let lanes: number, columns: number;
  if (acrossOutputs && fours) {
    columns = Math.min(powerAbove(outputs), lanesOf(target));
    lanes = 1;
  } else if (acrossOutputs) {
    columns = Math.min(powerAbove(outputs), 32);
    lanes = Math.min(powerBelow(terms / 4), most / columns);
    if (lanes === 1) columns = Math.min(powerAbove(outputs), most);
  } else {
    // A software device walks rows with one invocation each, unless there are few long ones: lanes that
    // wait for each other take it long to compile.
    const enough = target.software && (outputs >= 64 || terms <= ALONE);
    lanes = enough || terms <= 8 ? 1 : Math.min(powerBelow(terms / 4), most);
    columns = Math.min(powerAbove(outputs), most / lanes);
  }
  const groups = Math.ceil(outputs / columns);
  const wanted = Math.ceil((target.software ? 8 : 512) / groups);
  const least = target.software ? ALONE : lanes * 16;
  const chunks = Math.max(1, Math.min(wanted, Math.floor(terms / least), 1024));
  const step = fours ? 4 : 1;
  const length = Math.max(1, Math.ceil(terms / chunks / step) * step);
  return {
    columns,
    lanes,
    acrossOutputs,
    chunks: Math.max(1, Math.ceil(terms / length)),
    length,
    fours,
  };
}

function layoutOfChunks(outputs: number, chunks: number, target: WgslTarget): Layout {
  const most = Math.min(target.maxInvocations, target.software ? 64 : 256);
  const columns = Math.min(powerAbove(outputs), most / 8);
  const lanes = Math.max(1, Math.min(powerBelow(chunks / 2), most / columns));
  return { columns, lanes, acrossOutputs: true, chunks: 1, length: chunks, fours: false };
}

function combined(combine: Combine, type: Register, a: string, b: string): string {
  if (type === "bool") {
    return combine === "min" || combine === "prod" ? `(${a} && ${b})` : `(${a} || ${b})`;
  }
  if (combine === "sum") return `(${a} + ${b})`;
  if (combine === "prod") return `(${a} * ${b})`;
  return `${combine}(${a}, ${b})`;
}

function identityOf(combine: Combine, type: Register): number {
  if (combine === "sum") return 0;
  if (combine === "prod") return 1;
  const low = type === "f32" ? -Infinity : type === "i32" ? -2147483648 : 0;
  const high = type === "f32"
    ? Infinity
    : type === "i32"
    ? 2147483647
    : type === "u32"
    ? 4294967295
    : 1;
  return combine === "max" ? low : high;
}

// Terms an invocation adds up before it adds the sum to its total: keeps rounding errors of long
// sums small.
const BLOCK = 64;

function pass(
  reduction: Reduction,
  space: Space,
  layout: Layout,
  stage: "whole" | "chunks" | "combine",
  target: WgslTarget,
): WgslPass {
  const { shape, reduced } = space;
  const border = shape.length - reduced;
  const outputs = countOf(shape.slice(0, border));
  const terms = countOf(shape.slice(border));
  const type = reduction.body.type;
  const T = wgslType(type);
  const { columns, lanes, chunks, length, acrossOutputs } = layout;
  const size = columns * lanes;
  // What an invocation combines at a time: one term, or four neighbours of the terms or the outputs.
  const fours = layout.fours ? (acrossOutputs ? "outputs" : "terms") : null;
  const W = fours ? `vec4<${T}>` : T;
  const units = fours === "outputs" ? outputs / 4 : outputs;
  const stride = fours === "terms" ? 4 * lanes : lanes;
  const module = new WgslModule(target, reduction.scalars);
  const stored: DType = type;
  const inputs = new WgslInputs(module, reduction.inputs);

  // Where results go.
  let store: string, epilogue = "";
  if (stage === "chunks") {
    const workspace = module.array({ kind: "workspace" }, stored, "write");
    store = workspace.store(`chunk * ${outputs}u + output`, "total");
  } else {
    const narrow = bytesOf(reduction.output) === 2;
    const array = module.array(
      { kind: "output", index: 0 },
      reduction.output,
      narrow ? "halves" : "write",
    );
    for (const [i] of reduction.aliases) inputs.alias(i, array);
    let value = "total";
    if (reduction.epilogue) {
      epilogue = epilogueFunction(module, reduction.outputShape!, reduction.epilogue, inputs);
      value = "epilogue(total, output)";
    }
    const { write } = reduction;
    const address = addressOf(write.strides, write.offset, (d) => `c${d}`) +
      slotTerm(module, write);
    store = `${coordinatesOf(shape, 0, border, "output")}
    let address = ${address};
    ${array.store("address", value)}`;
  }

  // What is combined.
  let before = "", element: string;
  const coordinates = `${coordinatesOf(shape, 0, border, "output")}
  ${coordinatesOf(shape, border, shape.length, "term")}`;
  if (stage === "combine") {
    const workspace = module.array({ kind: "workspace" }, stored);
    element = `return ${workspace.load(`term * ${outputs}u + output`)};`;
  } else if (fours) {
    const dim = (fours === "outputs" ? border : shape.length) - 1;
    const { function: one, loads, values } = foursOf(module, space, dim, reduction.inputs)!;
    before = one;
    element = `${coordinates}
  ${loads}
  return ${W}(${values.join(", ")});`;
  } else {
    const emitted = emitExpr(module, space.bodies, {
      coordinate: (d) => `c${d}`,
      array: (i) => inputs.array(i),
    });
    element = `${coordinates}
  ${emitted.code}
  return ${emitted.values[0]};`;
  }

  const identity = `${W}(${literalOf(module, type, identityOf(reduction.combine, type))})`;
  const join = (a: string, b: string): string => combined(reduction.combine, type, a, b);
  const unitGroups = Math.ceil(units / columns);
  const groups = dispatchOf(unitGroups * chunks, target);
  const step = (into: string): string => `${into} = ${join(into, "terms(output, term)")};`;
  const blocked = reduction.combine === "sum" && type === "f32" && length > stride * BLOCK * 2;
  const loop = blocked
    ? `for (var start = first; start < last; start += ${stride * BLOCK}u) {
      var part = ${identity};
      let end = min(start + ${stride * BLOCK}u, last);
      for (var term = start + skip; term < end; term += ${stride}u) { ${step("part")} }
      totals = ${join("totals", "part")};
    }`
    : `for (var term = first + skip; term < last; term += ${stride}u) { ${step("totals")} }`;
  const mine = acrossOutputs
    ? `let column = local % ${columns}u;
  let lane = local / ${columns}u;`
    : `let lane = local % ${lanes}u;
  let column = local / ${lanes}u;`;
  const apart = acrossOutputs ? columns : 1;
  const tree: string[] = [];
  for (let s = lanes / 2; s >= 1; s /= 2) {
    tree.push(`workgroupBarrier();
  if (lane < ${s}u) { shared_terms[local] = ${
      join("shared_terms[local]", `shared_terms[local + ${s * apart}u]`)
    }; }`);
  }
  const finish = fours === "outputs"
    ? `for (var four = 0u; four < 4u; four++) {
      let output = unit * 4u + four;
      let total = totals[four];
      ${store}
    }`
    : `let total = ${
      fours ? join(join("totals.x", "totals.y"), join("totals.z", "totals.w")) : "totals"
    };
    ${store}`;
  const code = `${lanes > 1 ? `var<workgroup> shared_terms: array<${W}, ${size}>;` : ""}
${epilogue}
${before}
fn terms(output: u32, term: u32) -> ${W} {
  ${element}
}
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) local: u32) {
  let group = id.x + id.y * ${groups[0]}u;
  if (group >= ${unitGroups * chunks}u) { return; }
  ${mine}
  let skip = lane * ${stride / lanes}u;
  let chunk = group / ${unitGroups}u;
  let unit = (group % ${unitGroups}u) * ${columns}u + column;
  let output = unit * ${outputs / units}u;
  let first = chunk * ${length}u;
  let last = min(first + ${length}u, ${terms}u);
  var totals = ${identity};
  if (unit < ${units}u) {
    ${loop}
  }
  ${
    lanes > 1
      ? `shared_terms[local] = totals;
  ${tree.join("\n  ")}
  totals = shared_terms[local];`
      : ""
  }
  if (lane == 0u && unit < ${units}u) {
    ${finish}
  }
}`;
  return module.pass(code, groups, outputs * terms * 4);
}

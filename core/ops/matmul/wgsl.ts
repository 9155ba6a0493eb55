/**
 * The matrix product in WGSL. Which kernel: a real GPU makes a reduction of few rows or columns, else
 * works on tiles in workgroup memory. A software device works on tiles in registers alone, because
 * there workgroup memory costs more than it saves; where the depth is small, one side's stay there.
 *
 * @module
 */

import { bytesOf } from "../../dtype.ts";
import { apply, type Expr } from "../../expr.ts";
import { type CallKernel, epilogueLoop, type Operand } from "../../kernel.ts";
import {
  contiguousStrides,
  countOf,
  dispatchOf,
  epilogueFunction,
  pointwiseWgsl,
  reductionWgsl,
  WgslInputs,
  WgslModule,
  type WgslPass,
  type WgslProgram,
  type WgslTarget,
} from "../../wgsl.ts";
import { widened } from "./product.ts";
import { type Product, productOf } from "./wgsl_product.ts";
import { hasVectorEpilogue } from "./wgsl_epilogue.ts";
import { isTurned, registerTile } from "./wgsl_register.ts";
import { sharedTile } from "./wgsl_shared.ts";
import { isThinDepth, thinDepth } from "./wgsl_thin.ts";

// Products with at most this many rows or columns are read-bound: no element is used often enough
// for a tile to pay.
const THIN = 4;

/** The program of a matrix product: [..., M, K] · [..., K, N]. */
export function matmulWgsl(call: CallKernel, target: WgslTarget): WgslProgram {
  if (countOf(call.outputs[0].shape) === 0) return { passes: [], workspace: 0 };
  const product = productOf(call);
  const { m, n, k } = product;
  if (k === 0 || (!target.software && (m <= THIN || n <= THIN))) return byReduction(call, target);
  return tiled(product, call, target);
}

/** The program of `product` in tiles: the sides may be read in ways of their own. */
export function tiled(product: Product, call: CallKernel, target: WgslTarget): WgslProgram {
  if (isThinDepth(product, call, target)) {
    return { passes: [thinDepth(product, call, target)], workspace: 0 };
  }
  // A software device takes long to compile an epilogue for each store; apart it is computed in vectors.
  const [output] = call.outputs;
  const within = isTurned(product) && hasVectorEpilogue(call);
  const apart = target.software && output.dtype === "f32" && !within ? call.epilogue : null;
  const { pass, chunks } = target.software
    ? registerTile(product, apart ? { ...call, epilogue: null } : call, target)
    : sharedTile(product, call, target);
  if (chunks === 1) {
    const after = apart ? epilogueLoop(call, apart) : null;
    const passes = after ? pointwiseWgsl(after, [[after.inPlace!, 0]], target).passes : [];
    return { passes: [pass, ...passes], workspace: 0 };
  }
  const count = countOf(output.shape);
  return { passes: [pass, sumOfChunks(call, chunks, target)], workspace: 4 * chunks * count };
}

// Σₖ a[.., m, k] · b[.., k, n] as a loop nest over [..., M, N, K].
function byReduction(call: CallKernel, target: WgslTarget): WgslProgram {
  const { shape } = call.outputs[0];
  const rank = shape.length;
  const [a, b] = call.inputs.map((o) => widened(o, rank));
  const batch = (o: Operand): number[] => o.strides.slice(0, rank - 2);
  const load = (input: number, strides: number[], offset: number): Expr => (
    { kind: "load", type: "f32", input, strides, offset, bounds: [] }
  );
  return reductionWgsl({
    shape: [...shape, a.shape[rank - 1]],
    reduced: 1,
    combine: "sum",
    body: apply(
      "mul",
      load(0, [...batch(a), a.strides[rank - 2], 0, a.strides[rank - 1]], a.offset),
      load(1, [...batch(b), 0, b.strides[rank - 1], b.strides[rank - 2]], b.offset),
    ),
    inputs: [a.dtype, b.dtype, ...call.epilogue?.inputs ?? []],
    scalars: call.scalars,
    output: call.outputs[0].dtype,
    write: { strides: contiguousStrides(shape), offset: 0 },
    aliases: [],
    epilogue: call.epilogue?.body,
    outputShape: shape,
  }, target);
}

// Adds the partial products of each chunk of K, in order, and applies the epilogue.
function sumOfChunks(call: CallKernel, chunks: number, target: WgslTarget): WgslPass {
  const [output] = call.outputs;
  const count = countOf(output.shape);
  const module = new WgslModule(target, call.scalars);
  const workspace = module.array({ kind: "workspace" }, "f32");
  const out = module.array(
    { kind: "output", index: 0 },
    output.dtype,
    bytesOf(output.dtype) === 2 ? "halves" : "write",
  );
  const epilogue = call.epilogue
    ? epilogueFunction(
      module,
      output.shape,
      call.epilogue.body,
      new WgslInputs(module, call.epilogue.inputs, call.inputs.length),
    )
    : "";
  const groups = dispatchOf(Math.ceil(count / 64), target);
  const code = `${epilogue}
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x + id.y * ${module.parameter(groups[0] * 64)};
  let count = ${module.parameter(count)};
  if (at >= count) { return; }
  var total = 0.0;
  let chunks = ${module.parameter(chunks)};
  for (var chunk = 0u; chunk < chunks; chunk++) {
    total += ${workspace.load("chunk * count + at")};
  }
  ${out.store("at", call.epilogue ? "epilogue(total, at)" : "total")}
}`;
  return module.pass(code, groups, count * chunks);
}

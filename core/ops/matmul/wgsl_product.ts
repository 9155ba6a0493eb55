/**
 * What both tiled kernels of the matrix product share: the shape of the work, access to the operands
 * in vectors of four where their layout allows, and the store.
 *
 * @module
 */

import { bytesOf } from "../../dtype.ts";
import type { CallKernel, Operand } from "../../kernel.ts";
import { widened } from "./product.ts";
import {
  coordinatesOf,
  countOf,
  epilogueFunction,
  type WgslArray,
  WgslInputs,
  WgslModule,
  type WgslPass,
  type WgslTarget,
} from "../../wgsl.ts";
import { hasVectorEpilogue, vectorEpilogue } from "./wgsl_epilogue.ts";

/** One operand as a matrix for each batch element. */
export interface Side {
  readonly operand: Operand;
  /** Strides of the batch dimensions. */
  readonly batch: readonly number[];
  /** Stride along M (left) or N (right). */
  readonly outer: number;
  /** Stride along K. */
  readonly inner: number;
  /** Along which of the two four neighbours make one aligned vector; null: neither. */
  readonly vectors: "outer" | "inner" | null;
  /** The functions of {@linkcode sideFunctions}, where the elements are not read as they lie. */
  readonly functions?: (module: WgslModule, name: string) => string;
}

/** C[batch, m, n] = Σₖ A[batch, m, k] · B[batch, k, n]. */
export interface Product {
  readonly batch: readonly number[];
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly a: Side;
  readonly b: Side;
}

/** The product that `call` asks for, with as much of the batch as possible made rows of A. */
export function productOf(call: CallKernel): Product {
  const rank = call.outputs[0].shape.length;
  const [a, b] = call.inputs.map((o) => widened(o, rank));
  let m = a.shape[rank - 2];
  const k = a.shape[rank - 1], n = b.shape[rank - 1];
  const batch = call.outputs[0].shape.slice(0, rank - 2);
  let row = a.strides[rank - 2];
  // One B for all and rows that follow on: [B, M, K] · [K, N] is [B·M, K] · [K, N].
  while (batch.length > 0) {
    const last = batch.length - 1;
    const size = batch[last];
    const follows = a.strides[last] === row * m || m === 1;
    if (size !== 1 && !(b.strides[last] === 0 && follows)) break;
    if (size !== 1) {
      if (m === 1) row = a.strides[last];
      m *= size;
    }
    batch.pop();
  }
  const side = (o: Operand, outer: number, inner: number, size: number): Side => {
    const strides = o.strides.slice(0, batch.length);
    const even = o.dtype === "f32" && o.offset % 4 === 0 &&
      strides.every((s, d) => s % 4 === 0 || batch[d] === 1);
    const vectors = even && inner === 1 && outer % 4 === 0 && k % 4 === 0
      ? "inner"
      : even && outer === 1 && inner % 4 === 0 && size % 4 === 0
      ? "outer"
      : null;
    return { operand: o, batch: strides, outer, inner, vectors };
  };
  return {
    batch,
    m,
    n,
    k,
    a: side(a, row, a.strides[rank - 1], m),
    b: side(b, b.strides[rank - 1], b.strides[rank - 2], n),
  };
}

/**
 * Binds operand `index` and returns WGSL functions: `NAME_base(batch)` and, from it, `NAME_line(base,
 * outer)` say where a line along K begins; `NAME_at(line, inner)` gives one element of it; `NAME_vec`,
 * where the side has vectors, the four from there on.
 */
function sideFunctions(
  module: WgslModule,
  side: Side,
  index: number,
  name: string,
  batch: readonly number[],
): string {
  if (side.functions) return side.functions(module, name);
  // A stride of one is no multiplication.
  const times = (i: string, stride: number): string =>
    stride === 1 ? `i32(${i})` : `i32(${i}) * ${module.parameter(stride, "i32")}`;
  const source = { kind: "input", index } as const;
  const functions: string[] = [];
  const address = `line + ${times("i", side.inner)}`;
  if (side.vectors) {
    const variable = module.bind(source, "vec4<f32>");
    functions.push(`fn ${name}_vec(line: i32, i: u32) -> vec4<f32> {
  return ${variable}[u32(${address}) >> 2u];
}
fn ${name}_at(line: i32, i: u32) -> f32 {
  let at = u32(${address});
  return ${variable}[at >> 2u][at & 3u];
}`);
  } else {
    const array: WgslArray = module.array(source, side.operand.dtype);
    functions.push(`fn ${name}_at(line: i32, i: u32) -> f32 {
  let at = ${address};
  return ${array.load("at")};
}`);
  }
  const terms = side.batch.map((s, d) => times(`c${d}`, s));
  terms.push(module.parameter(side.operand.offset, "i32"));
  functions.push(`fn ${name}_line(base: i32, o: u32) -> i32 {
  return base + ${times("o", side.outer)};
}
fn ${name}_base(batch: u32) -> i32 {
  ${coordinatesOf(batch, 0, batch.length, "batch", "c", (size) => module.parameter(size))}
  return ${terms.join(" + ")};
}`);
  return functions.join("\n");
}

/** Where a tiled kernel puts its results: the output, or a chunk of the workspace. */
export interface Sink {
  /** Functions the store needs. */
  readonly code: string;
  /** The index of the first element of the batch element and chunk. */
  readonly origin: string;
  /** Whether `vector` may be used: four columns at a time. */
  readonly vectors: boolean;
  /** Statements that store `value` as element `at`. */
  readonly store: (at: string, value: string) => string;
  /** Statements that store four elements from `at`, a multiple of four, on. */
  readonly vector: (at: string, value: string) => string;
  /** Statements before all stores to four columns, the first of which is `column`. */
  readonly columns: (column: string) => string;
}

/** The sink of `product`; where `split`, results go to the workspace of chunk `chunk`. */
function sinkOf(
  module: WgslModule,
  product: Product,
  call: CallKernel,
  split: boolean,
): Sink {
  const [output] = call.outputs;
  const source = split ? { kind: "workspace" } as const : { kind: "output", index: 0 } as const;
  const { m, n } = product;
  // Chunk 0 is all there is where it is not split: so that split or not is the same code.
  const from = split || module.target.software
    ? `chunk * ${module.parameter(countOf(output.shape))} + `
    : "";
  const origin = `${from}batch * ${module.parameter(m * n)}`;
  const vectors = !split && module.target.software && hasVectorEpilogue(call)
    ? vectorEpilogue(module, call)
    : null;
  const plain = split || vectors || (!call.epilogue && output.dtype === "f32");
  if (plain && n % 4 === 0) {
    const variable = module.bind(source, "vec4<f32>", true);
    return {
      code: "",
      origin,
      vectors: true,
      store: (at, value) => `${variable}[(${at}) >> 2u][(${at}) & 3u] = ${value};`,
      vector: (at, value) => {
        const done = vectors?.apply(value, at) ?? { code: "", value };
        return `${done.code} ${variable}[(${at}) >> 2u] = ${done.value};`;
      },
      columns: vectors?.columns ?? (() => ""),
    };
  }
  const narrow = bytesOf(output.dtype) === 2 && !split;
  const array = module.array(source, split ? "f32" : output.dtype, narrow ? "halves" : "write");
  const epilogue = call.epilogue && !split
    ? epilogueFunction(
      module,
      output.shape,
      call.epilogue.body,
      new WgslInputs(module, call.epilogue.inputs, call.inputs.length),
    )
    : "";
  const store = (at: string, value: string): string =>
    array.store(at, epilogue ? `epilogue(${value}, ${at})` : value);
  return { code: epilogue, origin, vectors: false, store, vector: store, columns: () => "" };
}

/** What a tiled kernel begins with: its module, the functions of both sides and of the store, the sink. */
export function beginTile(
  product: Product,
  call: CallKernel,
  target: WgslTarget,
  split: boolean,
): { module: WgslModule; functions: string; sink: Sink } {
  const module = new WgslModule(target, call.scalars);
  const a = sideFunctions(module, product.a, 0, "a", product.batch);
  const b = sideFunctions(module, product.b, 1, "b", product.batch);
  const sink = sinkOf(module, product, call, split);
  return { module, functions: [a, b, sink.code].join("\n"), sink };
}

/** A pass over tiles. */
export interface TiledPass {
  readonly pass: WgslPass;
  /**
   * Into how many chunks it cuts K. Where there are several it leaves them in the workspace, for a pass
   * that adds them and applies the epilogue.
   */
  readonly chunks: number;
}

/**
 * Statements that store the accumulators `name(i, j)`: row i of the invocation's `rows`, the four
 * columns of its vector j. `rowOf` and `columnOf` give their places in the matrix of `m` rows and `n`
 * columns, which `exact` tiles never leave.
 */
export function storeTile(
  sink: Sink,
  m: string,
  n: string,
  rows: number,
  vectors: number,
  name: (i: number, j: number) => string,
  rowOf: (i: string) => string,
  columnOf: (j: string) => string,
  exact = false,
): string {
  const inside = (row: string, column: string, statement: string): string =>
    exact ? statement : `if (${row} < ${m} && ${column} < ${n}) { ${statement} }`;
  const lines = [`let origin = ${sink.origin};`];
  if (sink.vectors) {
    for (let j = 0; j < vectors; j++) {
      const column = columnOf(`${j}u`);
      lines.push(sink.columns(column));
      for (let i = 0; i < rows; i++) {
        const row = rowOf(`${i}u`);
        const at = `(origin + (${row}) * ${n} + ${column})`;
        lines.push(inside(row, column, sink.vector(at, name(i, j))));
      }
    }
    return lines.join("\n  ");
  }
  // A loop, so that the epilogue's code stands once.
  const all: string[] = [];
  for (let i = 0; i < rows; i++) for (let j = 0; j < vectors; j++) all.push(name(i, j));
  return `${lines[0]}
  var tile = array<vec4<f32>, ${rows * vectors}>(${all.join(", ")});
  for (var e = 0u; e < ${rows * vectors * 4}u; e++) {
    let row = ${rowOf(`(e / ${vectors * 4}u)`)};
    let column = ${columnOf(`((e / 4u) % ${vectors}u)`)} + (e & 3u);
    if (row < ${m} && column < ${n}) {
      let at = origin + row * ${n} + column;
      let value = tile[e >> 2u][e & 3u];
      ${sink.store("at", "value")}
    }
  }`;
}

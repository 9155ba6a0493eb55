/**
 * An epilogue that reads and writes four columns at a time: a bias, a residual, a factor.
 *
 * @module
 */

import { type Load, nodesOf } from "../../expr.ts";
import type { CallKernel } from "../../kernel.ts";
import { contiguousStrides, emitExpr, type WgslModule } from "../../wgsl.ts";

/** Operations that WGSL has for vectors as it has them for numbers. */
const VECTOR = new Set<string>(["add", "sub", "mul", "div", "neg"]);

/** How a load lies in C [.., m, n]: as C itself, or as one row for all; null: otherwise. */
function lies(
  { type, strides, offset, bounds }: Load,
  shape: readonly number[],
): "own" | "row" | null {
  if (type !== "f32" || offset % 4 !== 0 || bounds.length > 0) return null;
  const as = (wanted: readonly number[]): boolean =>
    strides.every((s, d) => s === wanted[d] || shape[d] === 1);
  const own = contiguousStrides(shape);
  return as(own) ? "own" : as(own.fill(0, 0, -1)) ? "row" : null;
}

/** Whether {@linkcode vectorEpilogue} can compute the epilogue of `call`. */
export function hasVectorEpilogue({ epilogue, outputs: [{ shape, dtype }] }: CallKernel): boolean {
  return epilogue !== null && dtype === "f32" && shape[shape.length - 1] % 4 === 0 &&
    epilogue.inputs.every((input) => input === "f32") &&
    nodesOf(epilogue.body).every((e) =>
      e.kind === "load"
        ? lies(e, shape) !== null
        : e.kind === "apply"
        ? VECTOR.has(e.op) && e.type === "f32"
        : e.kind === "acc" || e.type === "f32" && e.kind !== "fetch"
    );
}

/** The epilogue of `call`, for vectors of four columns. */
export interface VectorEpilogue {
  /** Statements that load what all rows share in the vector whose first column is `column`. */
  readonly columns: (column: string) => string;
  /** Statements that make of the vector `acc` elements `at` to `at + 3`, and the name of the result. */
  readonly apply: (acc: string, at: string) => { code: string; value: string };
}

/** Binds what the epilogue of `call` reads. */
export function vectorEpilogue(module: WgslModule, call: CallKernel): VectorEpilogue {
  const { body } = call.epilogue!;
  const { shape } = call.outputs[0];
  const loads = nodesOf(body).filter((e) => e.kind === "load");
  const bound = new Map<number, string>();
  for (const { input } of loads) {
    if (bound.has(input)) continue;
    bound.set(input, module.bind({ kind: "input", index: input }, "vec4<f32>"));
  }
  const offsets = new Map(loads.map((e) => [e, module.parameter(e.offset)]));
  const read = (e: Load, at: string): string =>
    `${bound.get(e.input)}[(${at} + ${offsets.get(e)}) >> 2u]`;
  // What the rows in hand share, by name.
  const shared = new Map<Load, string>();
  return {
    columns: (column) => {
      for (const e of loads) if (lies(e, shape) === "row") shared.set(e, module.name("r"));
      return [...shared].map(([e, name]) => `let ${name} = ${read(e, column)};`).join("\n  ");
    },
    apply: (acc, at) => {
      const { code, values: [value] } = emitExpr(module, [body], {
        acc,
        coordinate: () => "",
        array: () => {
          throw new Error("internal: an epilogue in vectors reads vectors");
        },
        load: (e) => shared.get(e) ?? read(e, at),
      });
      return { code, value };
    },
  };
}

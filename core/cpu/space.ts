/**
 * The iteration space of a loop kernel, simplified: dimensions of size 1 are gone, neighbours that lie
 * evenly in memory are one, bounds that always hold are dropped.
 *
 * @module
 */

import { type Bound, constant, type Expr, nodesOf, rewrite } from "../expr.ts";
import { bodiesOf, type LoopKernel, outputsOf, withOutputs } from "../kernel.ts";

/** The kernel with each node of its expressions replaced by what `change` makes of it. */
function rewriteKernel(kernel: LoopKernel, change: (e: Expr) => Expr): LoopKernel {
  const bodies = rewrite(bodiesOf(kernel), change);
  return withOutputs(kernel, outputsOf(kernel).map((o, i) => ({ ...o, body: bodies[i] })));
}

/** The same kernel over the fewest dimensions, but at least one. */
export function simplify(kernel: LoopKernel): LoopKernel {
  const simple = mergeDims(dropUnits(kernel));
  if (simple.shape.length > 0) return simple;
  return {
    ...rewriteKernel(
      simple,
      (e) => e.kind === "load" || e.kind === "fetch" ? { ...e, strides: [0] } : e,
    ),
    shape: [1],
    write: { ...simple.write, strides: [1] },
  };
}

function dropUnits(kernel: LoopKernel): LoopKernel {
  const { shape } = kernel;
  const kept = shape.map((_, d) => d).filter((d) => shape[d] !== 1);
  const pick = <T>(list: readonly T[]) => kept.map((d) => list[d]);
  const simple = rewriteKernel(kernel, (e) => {
    if (e.kind === "index") {
      return shape[e.dim] === 1 ? constant("i32", 0) : { ...e, dim: kept.indexOf(e.dim) };
    }
    if (e.kind === "load") {
      const bounds: Bound[] = [];
      for (const b of e.bounds) {
        const low = Math.max(b.low, 0);
        const high = Math.min(b.high, shape[b.dim]);
        if (low >= high) return constant(e.type, 0);
        if (low === 0 && high === shape[b.dim]) continue;
        bounds.push({ dim: kept.indexOf(b.dim), low, high });
      }
      return { ...e, strides: pick(e.strides), bounds };
    }
    if (e.kind === "fetch") {
      if (e.at.some((a) => a.size <= 0)) return constant(e.type, 0);
      return { ...e, strides: pick(e.strides) };
    }
    return e;
  });
  return {
    ...simple,
    shape: pick(shape),
    reduced: kept.filter((d) => d >= shape.length - kernel.reduced).length,
    write: {
      ...kernel.write,
      strides: kept.filter((d) => d < shape.length - kernel.reduced)
        .map((d) => kernel.write.strides[d]),
    },
  };
}

function mergeDims(kernel: LoopKernel): LoopKernel {
  for (let d = 0; d + 1 < kernel.shape.length; d++) {
    if (d + 1 === kernel.shape.length - kernel.reduced) continue;
    if (mergeable(kernel, d)) return mergeDims(merge(kernel, d));
  }
  return kernel;
}

/** Whether dimensions d and d + 1 can be walked as one. */
function mergeable(kernel: LoopKernel, d: number): boolean {
  const n = kernel.shape[d + 1];
  const even = (strides: readonly number[]) =>
    d + 1 >= strides.length || strides[d] === strides[d + 1] * n;
  if (!even(kernel.write.strides)) return false;
  return nodesOf(...bodiesOf(kernel)).every((e) => {
    switch (e.kind) {
      case "index":
        return e.dim !== d && e.dim !== d + 1;
      case "load":
        return even(e.strides) && e.bounds.every((b) => b.dim !== d && b.dim !== d + 1);
      case "fetch":
        return even(e.strides);
      default:
        return true;
    }
  });
}

function merge(kernel: LoopKernel, d: number): LoopKernel {
  const inner = (strides: readonly number[]) => strides.filter((_, i) => i !== d);
  const moved = (dim: number) => dim > d ? dim - 1 : dim;
  const output = d + 1 < kernel.shape.length - kernel.reduced;
  return {
    ...rewriteKernel(kernel, (e) => {
      switch (e.kind) {
        case "index":
          return { ...e, dim: moved(e.dim) };
        case "load":
          return {
            ...e,
            strides: inner(e.strides),
            bounds: e.bounds.map((b) => ({ ...b, dim: moved(b.dim) })),
          };
        case "fetch":
          return { ...e, strides: inner(e.strides) };
        default:
          return e;
      }
    }),
    shape: kernel.shape.with(d + 1, kernel.shape[d] * kernel.shape[d + 1])
      .filter((_, i) => i !== d),
    reduced: output ? kernel.reduced : kernel.reduced - 1,
    write: output ? { ...kernel.write, strides: inner(kernel.write.strides) } : kernel.write,
  };
}

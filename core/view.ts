/**
 * Views: how the elements of a tensor lie in a buffer. Reshape, permute, slice, expand, flip and pad
 * move no data; they change the view.
 *
 * @module
 */

import type { Bound } from "./expr.ts";
import { rowMajor, type Shape } from "./shape.ts";

/**
 * Element c of a tensor of shape `shape` lies at `offset + Σ strides[d] · c[d]`, and is 0 where one of
 * `bounds` does not hold.
 */
export interface View {
  readonly shape: Shape;
  readonly strides: readonly number[];
  readonly offset: number;
  readonly bounds: readonly Bound[];
}

/** The view of a whole row-major buffer. */
export function contiguous(shape: Shape): View {
  return { shape, strides: rowMajor(shape), offset: 0, bounds: [] };
}

/** Whether `view` reads a buffer from its start, in order and whole. */
export function isContiguous(view: View): boolean {
  if (view.offset !== 0 || view.bounds.length > 0) return false;
  let stride = 1;
  for (let d = view.shape.length - 1; d >= 0; d--) {
    if (view.shape[d] !== 1 && view.strides[d] !== stride) return false;
    stride *= view.shape[d];
  }
  return true;
}

/** Dimension d of the result is dimension `order[d]` of `view`. */
export function permuteView(view: View, order: readonly number[]): View {
  return {
    shape: order.map((d) => view.shape[d]),
    strides: order.map((d) => view.strides[d]),
    offset: view.offset,
    bounds: view.bounds.map((b) => ({ ...b, dim: order.indexOf(b.dim) })),
  };
}

/** Elements `start, start + step, …` below `end` of one dimension; `step` is positive. */
export function sliceView(
  view: View,
  dim: number,
  start: number,
  end: number,
  step: number,
): View {
  const n = Math.max(0, Math.ceil((end - start) / step));
  return {
    shape: view.shape.with(dim, n),
    strides: view.strides.with(dim, view.strides[dim] * step),
    offset: view.offset + start * view.strides[dim],
    bounds: view.bounds.map((b) =>
      b.dim !== dim ? b : {
        dim,
        low: Math.max(0, Math.ceil((b.low - start) / step)),
        high: Math.ceil((b.high - start) / step),
      }
    ),
  };
}

/** One dimension back to front. */
export function flipView(view: View, dim: number): View {
  const n = view.shape[dim];
  return {
    shape: view.shape,
    strides: view.strides.with(dim, -view.strides[dim]),
    offset: view.offset + (n - 1) * view.strides[dim],
    bounds: view.bounds.map((b) => b.dim !== dim ? b : { dim, low: n - b.high, high: n - b.low }),
  };
}

/**
 * Stretches to `shape`, aligned at the right: a dimension of size 1 repeats. Null where a bound would
 * have to hold on a stretched dimension.
 */
export function expandView(view: View, shape: Shape): View | null {
  const lead = shape.length - view.shape.length;
  const strides = shape.map((n, d) => {
    const from = d - lead;
    return from < 0 || (view.shape[from] === 1 && n !== 1) ? 0 : view.strides[from];
  });
  for (const b of view.bounds) {
    if (view.shape[b.dim] === 1 && shape[b.dim + lead] !== 1) return null;
  }
  return {
    shape,
    strides,
    offset: view.offset,
    bounds: view.bounds.map((b) => ({ ...b, dim: b.dim + lead })),
  };
}

/** `before` and `after` zeros around one dimension. */
export function padView(view: View, dim: number, before: number, after: number): View {
  const n = view.shape[dim];
  const kept = view.bounds.map((b) =>
    b.dim !== dim ? b : { dim, low: b.low + before, high: b.high + before }
  );
  return {
    shape: view.shape.with(dim, n + before + after),
    strides: view.strides,
    offset: view.offset - before * view.strides[dim],
    bounds: [...kept, { dim, low: before, high: before + n }],
  };
}

/** The same elements in order, in another shape; null where that needs a copy. */
export function reshapeView(view: View, shape: Shape): View | null {
  if (isContiguous(view)) return contiguous(shape);
  if (shape.includes(0)) return { shape, strides: shape.map(() => 0), offset: 0, bounds: [] };
  // Walk both shapes in groups of dimensions with equal products; a group must lie evenly spaced.
  const strides = new Array<number>(shape.length).fill(0);
  const bounds: Bound[] = [];
  let i = 0;
  let j = 0;
  while (i < view.shape.length || j < shape.length) {
    const from = i;
    const to = j;
    let m = view.shape[i++] ?? 1;
    let n = shape[j++] ?? 1;
    while (m !== n) {
      if (m < n) m *= view.shape[i++];
      else n *= shape[j++];
    }
    const dims: number[] = [];
    for (let d = from; d < Math.min(i, view.shape.length); d++) {
      if (view.shape[d] !== 1) dims.push(d);
      else if (view.bounds.some((b) => b.dim === d && (b.low > 0 || b.high < 1))) return null;
    }
    for (let k = 0; k + 1 < dims.length; k++) {
      if (view.strides[dims[k]] !== view.strides[dims[k + 1]] * view.shape[dims[k + 1]]) {
        return null;
      }
    }
    const bounded = view.bounds.filter((b) => dims.includes(b.dim));
    const targets: number[] = [];
    for (let d = to; d < Math.min(j, shape.length); d++) if (shape[d] !== 1) targets.push(d);
    if (bounded.length > 0) {
      if (dims.length !== 1 || targets.length !== 1) return null;
      for (const b of bounded) bounds.push({ ...b, dim: targets[0] });
    }
    let stride = dims.length > 0 ? view.strides[dims[dims.length - 1]] : 0;
    for (let k = targets.length - 1; k >= 0; k--) {
      strides[targets[k]] = stride;
      stride *= shape[targets[k]];
    }
  }
  return { shape, strides, offset: view.offset, bounds };
}

/**
 * Iteration spaces: merging dimensions that every access walks as one, and turning flat indices into
 * coordinates.
 *
 * @module
 */

import { type Expr, nodesOf, rewrite } from "../expr.ts";

/** An iteration space and what is computed over it. */
export interface Space {
  readonly shape: readonly number[];
  /** How many trailing dimensions are reduced. */
  readonly reduced: number;
  /** One for each output. */
  readonly bodies: readonly Expr[];
  /** Strides over the dimensions that are not reduced. */
  readonly write: readonly number[];
}

/** The strides of a contiguous array. */
export function contiguousStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  for (let d = shape.length - 1, s = 1; d >= 0; s *= shape[d--]) strides[d] = s;
  return strides;
}

/** The number of elements of `shape`. */
export function countOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** The same space with as few dimensions as its accesses allow. */
export function collapse(space: Space): Space {
  const { shape, reduced, write } = space;
  const border = shape.length - reduced;
  const pinned = new Set<number>();
  const vectors: (readonly number[])[] = [[
    ...write,
    ...new Array<number>(reduced).fill(NaN),
  ]];
  for (const e of nodesOf(...space.bodies)) {
    if (e.kind === "index") pinned.add(e.dim);
    if (e.kind === "load" || e.kind === "fetch") vectors.push(e.strides);
    if (e.kind === "load") e.bounds.forEach((b) => pinned.add(b.dim));
  }

  // Groups of old dimensions, outermost first; a new dimension for each.
  const groups: number[][] = [];
  for (let d = 0; d < shape.length; d++) {
    if (shape[d] === 1 && !pinned.has(d)) continue;
    const last = groups.at(-1)?.at(-1);
    const merge = last !== undefined && !pinned.has(d) && !pinned.has(last) &&
      (last < border) === (d < border) &&
      vectors.every((v) => Number.isNaN(v[d]) || v[last] === v[d] * shape[d]);
    if (merge) groups.at(-1)!.push(d);
    else groups.push([d]);
  }
  const inner = groups.map((g) => g.at(-1)!);
  const place = new Map(inner.map((d, i) => [d, i]));
  const bodies = rewrite(space.bodies, (e) => {
    switch (e.kind) {
      case "index":
        return { ...e, dim: place.get(e.dim)! };
      case "load":
        return {
          ...e,
          strides: inner.map((d) => e.strides[d]),
          bounds: e.bounds.map((b) => ({ ...b, dim: place.get(b.dim)! })),
        };
      case "fetch":
        return { ...e, strides: inner.map((d) => e.strides[d]) };
      default:
        return e;
    }
  });
  return {
    shape: groups.map((g) => countOf(g.map((d) => shape[d]))),
    reduced: groups.filter((g) => g[0] >= border).length,
    bodies,
    write: inner.filter((d) => d < border).map((d) => write[d]),
  };
}

/**
 * Statements that split the u32 `flat` over dimensions `first` to `last - 1` of `shape` into i32
 * variables named `prefix` and the dimension. `text` writes a size.
 */
export function coordinatesOf(
  shape: readonly number[],
  first: number,
  last: number,
  flat: string,
  prefix = "c",
  text: (size: number) => string = (size) => `${size}u`,
): string {
  const lines: string[] = [];
  let rest = flat;
  for (let d = last - 1; d >= first; d--) {
    if (d === first) {
      lines.push(`let ${prefix}${d} = i32(${rest});`);
    } else {
      const size = text(shape[d]);
      lines.push(`let ${prefix}${d} = i32(${rest} % ${size});`);
      lines.push(`let ${prefix}r${d} = ${rest} / ${size};`);
      rest = `${prefix}r${d}`;
    }
  }
  return lines.join("\n  ");
}

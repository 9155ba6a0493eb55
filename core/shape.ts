/**
 * Arithmetic on shapes, and the one wording of its errors.
 *
 * @module
 */

/** Sizes of a tensor's dimensions, outermost first. */
export type Shape = readonly number[];

/** Number of elements. */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (const n of shape) size *= n;
  return size;
}

/** `[2, 3]`. */
export function show(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

/** Whether two shapes are the same. */
export function sameShape(a: Shape, b: Shape): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Strides, in elements, of a row-major array. */
export function rowMajor(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let d = shape.length - 1; d >= 0; d--) {
    strides[d] = stride;
    stride *= shape[d];
  }
  return strides;
}

/** Turns an axis that may count from the end into an index, or throws. */
export function axisOf(what: string, axis: number, shape: Shape): number {
  const index = axis < 0 ? axis + shape.length : axis;
  if (!Number.isInteger(axis) || index < 0 || index >= shape.length) {
    throw new RangeError(
      `${what}: axis must be an integer in [${-shape.length}, ${shape.length}) for shape ${
        show(shape)
      }, got ${axis}`,
    );
  }
  return index;
}

/** Axes as sorted indices; undefined means all. Throws on a repeated axis. */
export function axesOf(
  what: string,
  axes: number | readonly number[] | undefined,
  shape: Shape,
): number[] {
  if (axes === undefined) return shape.map((_, i) => i);
  const list = (typeof axes === "number" ? [axes] : axes).map((a) => axisOf(what, a, shape));
  list.sort((a, b) => a - b);
  for (let i = 1; i < list.length; i++) {
    if (list[i] === list[i - 1]) throw new RangeError(`${what}: axis ${list[i]} is named twice`);
  }
  return list;
}

/** The shape both broadcast to (NumPy's rule: aligned at the right, 1 stretches), or throws. */
export function broadcast(what: string, a: Shape, b: Shape): Shape {
  if (b.length === 0 || sameShape(a, b)) return a;
  const rank = Math.max(a.length, b.length);
  const out = new Array<number>(rank);
  for (let i = 1; i <= rank; i++) {
    const m = a[a.length - i] ?? 1;
    const n = b[b.length - i] ?? 1;
    if (m !== n && m !== 1 && n !== 1) {
      throw new RangeError(
        `${what}: shapes must broadcast, got ${show(a)} and ${
          show(b)
        } (dimension -${i}: ${m} and ${n})`,
      );
    }
    out[rank - i] = m === 1 ? n : m;
  }
  return out;
}

/** Checks a user's shape: integers, none negative. */
export function checkShape(what: string, shape: Shape): void {
  for (const n of shape) {
    if (!Number.isInteger(n) || n < 0) {
      throw new RangeError(`${what}: a shape holds whole numbers from 0 on, got ${show(shape)}`);
    }
  }
}

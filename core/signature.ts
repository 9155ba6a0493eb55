/**
 * Numbers for what nodes compute: a plan's key is made of them, at every step of a loop. So they are
 * found without making a text.
 *
 * @module
 */

import type { DType } from "./dtype.ts";
import type { Attr, Attrs, Output } from "./graph.ts";
import type { Op } from "./op.ts";
import { sameShape, type Shape } from "./shape.ts";

/** The settings of ops that have none. */
export const NO_ATTRS: Attrs = {};

/** What has a signature. */
interface Known {
  readonly op: Op;
  readonly attrs: Attrs;
  readonly shape: Shape;
  readonly dtype: DType;
  readonly outputs: readonly Output[] | null;
  readonly signature: number;
}

/** By a hash of op, shape and numbers among the settings; a list is rarely longer than two. */
const table = new Map<number, Known[]>();
let count = 0;

/** A number that is equal for the same op, settings, shapes and dtypes, and for nothing else. */
export function signatureOf(
  op: Op,
  attrs: Attrs,
  { shape, dtype }: Output,
  outputs: readonly Output[] | null,
): number {
  let hash = op.uid;
  for (let d = 0; d < shape.length; d++) hash = Math.imul(hash ^ shape[d], 0x01000193);
  if (attrs !== NO_ATTRS) {
    for (const name in attrs) {
      const value = attrs[name];
      if (typeof value === "number") hash = Math.imul(hash ^ value, 0x01000193);
    }
  }
  hash &= 0x3fffffff; // small integers need no memory
  let bucket = table.get(hash);
  if (bucket === undefined) table.set(hash, bucket = []);
  for (let i = 0; i < bucket.length; i++) {
    const known = bucket[i];
    if (
      known.op === op && known.dtype === dtype && sameShape(known.shape, shape) &&
      sameAttrs(known.attrs, attrs) && sameOutputs(known.outputs, outputs)
    ) return known.signature;
  }
  bucket.push({ op, attrs, shape, dtype, outputs, signature: ++count });
  return count;
}

function sameAttrs(a: Attrs, b: Attrs): boolean {
  if (a === b) return true;
  let left = 0;
  for (const name in a) {
    if (!sameAttr(a[name], b[name])) return false;
    left++;
  }
  for (const _ in b) left--;
  return left === 0;
}

function sameAttr(a: Attr, b: Attr | undefined): boolean {
  if (Object.is(a, b)) return true;
  return typeof a === "object" && typeof b === "object" && sameShape(a, b);
}

function sameOutputs(a: readonly Output[] | null, b: readonly Output[] | null): boolean {
  if (a === b) return true;
  return a !== null && b !== null && a.length === b.length &&
    a.every(({ shape, dtype }, i) => dtype === b[i].dtype && sameShape(shape, b[i].shape));
}

/**
 * Buckets: gradients that go over the wire together.
 *
 * @module
 */

import type { DType, Shape, Variable } from "../core/mod.ts";
import { bytesOf, QuantizedMatrix } from "../core/mod.ts";

/** A parameter's gradient inside a bucket. */
export interface BucketEntry {
  /** The parameter's path in its module. */
  readonly name: string;
  /** Its shape. */
  readonly shape: Shape;
  /** Where its elements begin in the bucket. */
  readonly offset: number;
  /** How many there are. */
  readonly length: number;
}

/** Gradients that are reduced in one collective. */
export interface Bucket {
  /** Its number in the step: buckets are reduced in this order. */
  readonly index: number;
  /** Elements in all. */
  readonly length: number;
  /** What is in it, one after another. */
  readonly entries: readonly BucketEntry[];
}

/** A named variable of a module. */
export type Named = readonly [name: string, variable: Variable];

/** The variables that hold what `variable` is: of a weight in packed form its words and scales. */
export function heldBy([name, variable]: Named): Named[] {
  const { matrix } = variable as { readonly matrix?: unknown };
  if (!(matrix instanceof QuantizedMatrix)) return [[name, variable]];
  const { words, scales } = matrix as unknown as Record<"words" | "scales", Variable>;
  return [[`${name}.words`, words], [`${name}.scales`, scales]];
}

/** A bucket with the variables it is about. */
export interface VariableBucket extends Bucket {
  readonly variables: readonly Variable[];
}

/**
 * Groups `named` into buckets of at least one variable and at most `bucketBytes`, counting 4 bytes an
 * element (or those of `dtypeOf`).
 */
export function bucketsOf(
  named: readonly Named[],
  bucketBytes: number,
  dtypeOf: (variable: Variable) => DType = () => "f32",
): VariableBucket[] {
  const buckets: VariableBucket[] = [];
  let members: Named[] = [];
  let bytes = 0;
  const close = (): void => {
    if (members.length > 0) buckets.push(bucketOf(members, buckets.length));
    members = [];
    bytes = 0;
  };
  for (const member of named) {
    const own = member[1].size * bytesOf(dtypeOf(member[1]));
    if (bytes + own > bucketBytes) close();
    members.push(member);
    bytes += own;
  }
  close();
  return buckets;
}

function bucketOf(members: readonly Named[], index: number): VariableBucket {
  let offset = 0;
  const entries = members.map(([name, { shape, size }]): BucketEntry => {
    const entry = { name, shape, offset, length: size };
    offset += size;
    return entry;
  });
  return { index, length: offset, entries, variables: members.map(([, variable]) => variable) };
}

/** "bucket 3: lm_head.weight and 4 more". */
export function bucketLabel({ index, entries }: Bucket): string {
  const more = entries.length > 1 ? ` and ${entries.length - 1} more` : "";
  return `bucket ${index}: ${entries[0].name}${more}`;
}

/** The elements of a bucket in one array, from the bytes of its entries. */
export function packFloats(
  { entries, length }: Bucket,
  bytes: readonly ArrayBuffer[],
): Float32Array<ArrayBuffer> {
  if (entries.length === 1) return new Float32Array(bytes[0], 0, length);
  const data = new Float32Array(length);
  entries.forEach((entry, i) =>
    data.set(new Float32Array(bytes[i], 0, entry.length), entry.offset)
  );
  return data;
}

/** The parts of `data` that are the entries'. */
export function unpackFloats(
  { entries }: Bucket,
  data: Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer>[] {
  return entries.map(({ offset, length }) => data.subarray(offset, offset + length));
}

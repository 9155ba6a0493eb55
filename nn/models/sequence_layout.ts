/**
 * Rows that hold less, or more, than one text: where their tokens are, and which see each other.
 *
 * @module
 */

import { type Tensor, tensor } from "../../core/mod.ts";
import type { ForwardOptions } from "./decoder.ts";

/** What a decoder's pass over padded rows needs, and where each row ends. */
export interface SequenceLayout {
  /** Positions and mask: empty where rows are padded on the right, which no token sees. */
  readonly options: ForwardOptions;
  /** Where, in B · T places, each row has its last token, i32 [B]. */
  readonly last: Tensor;
}

/**
 * The layout of rows [B, T] of which `attentionMask` [B · T] is 1 where a token is, 0 where padding is,
 * on either side; without one every place holds a token. What the padding is does not matter, so it may
 * be the end token.
 *
 * Throws a `RangeError` where the mask has another length, or a row has no token or padding within.
 */
export function sequenceLayout(
  what: string,
  [b, t]: readonly number[],
  attentionMask?: Int32Array<ArrayBuffer>,
): SequenceLayout {
  if (attentionMask && attentionMask.length !== b * t) {
    throw new RangeError(
      `${what}: needs an attentionMask of ${b * t} for tokens [${b}, ${t}], got ` +
        `${attentionMask.length}`,
    );
  }
  const starts = new Int32Array(b), last = new Int32Array(b);
  for (let row = 0; row < b; row++) {
    const [first, end] = attentionMask
      ? tokensOf(what, row, attentionMask.subarray(row * t, (row + 1) * t))
      : [0, t];
    starts[row] = first;
    last[row] = row * t + end - 1;
  }
  const ends = tensor(last);
  return starts.some((start) => start > 0)
    ? { last: ends, options: leftPadded(starts, t) }
    : { last: ends, options: {} };
}

/** First token of a row, and the place after its last. */
function tokensOf(what: string, row: number, mask: Int32Array): [first: number, end: number] {
  const first = mask.indexOf(1), end = mask.lastIndexOf(1) + 1;
  if (first < 0) throw new RangeError(`${what}: row ${row} has no token, it needs at least one`);
  if (mask.subarray(first, end).includes(0)) {
    throw new RangeError(
      `${what}: row ${row} has padding between its tokens: padding stands before or after them`,
    );
  }
  return [first, end];
}

function leftPadded(starts: Int32Array<ArrayBuffer>, t: number): ForwardOptions {
  const b = starts.length;
  const positions = Int32Array.from(
    { length: b * t },
    (_, i) => Math.max(0, i % t - starts[Math.floor(i / t)]),
  );
  const first = tensor(starts, { shape: [b, 1, 1, 1] });
  const places = Int32Array.from({ length: t }, (_, i) => i);
  const key = tensor(places, { shape: [1, 1, 1, t] }),
    query = tensor(places, { shape: [1, 1, t, 1] });
  // Nobody attends to padding but padding itself, which has to attend to something.
  return { positions, mask: key.ge(first).or(query.lt(first)) }; // [B, 1, T, T]
}

/**
 * The options of a pass over rows [B, T] in which each token attends to tokens with its own number alone,
 * and positions begin at 0 with each run of one number.
 *
 * Throws a `RangeError` where there is not a number for each token.
 */
export function separated(
  documents: Int32Array<ArrayBuffer>,
  [b, t]: readonly number[],
  options: ForwardOptions,
): ForwardOptions {
  if (documents.length !== b * t) {
    throw new RangeError(
      `documents: needs ${b * t} numbers for tokens [${b}, ${t}], got ${documents.length}`,
    );
  }
  const positions = new Int32Array(b * t);
  for (let i = 0; i < b * t; i++) {
    const goesOn = i % t > 0 && documents[i] === documents[i - 1];
    positions[i] = goesOn ? positions[i - 1] + 1 : 0;
  }
  const query = tensor(documents, { shape: [b, 1, t, 1] });
  const same = query.eq(tensor(documents, { shape: [b, 1, 1, t] })); // [B, 1, T, T]
  return { ...options, positions, mask: options.mask ? same.and(options.mask) : same };
}

import type { TokenizedDocument } from "./cache.ts";

/** A target that the loss leaves out: a prompt's token, or padding. */
export const IGNORED_TARGET: number = -100;

/** One row of a batch: `targets[t]` is the token that follows `inputs[0..t]`. */
export interface TokenWindow {
  /** The token ids. */
  readonly inputs: Int32Array;
  /** The token that follows each, or {@linkcode IGNORED_TARGET}. */
  readonly targets: Int32Array;
  /** A number for each token, the same within a document; absent where documents see each other. */
  readonly documents?: Int32Array;
}

/** How documents are packed. */
export interface PackOptions {
  /**
   * Whether a document is learnt as if it stood alone: its tokens attend to no other document's, and
   * its positions begin at 0. Then none that fits into a window is cut. Default false.
   */
  readonly separate?: boolean;
}

/** Rows of one length, found by number. */
export interface Dataset {
  /** The number of windows. */
  readonly length: number;
  /** Tokens in a window. */
  readonly sequenceLength: number;
  /** The window; a mixed dataset may bring others in another epoch. Not to be written to. */
  window(index: number, epoch: number): TokenWindow;
}

/**
 * Packs documents into windows of `sequenceLength` tokens. A document of n tokens gives n - 1 pairs
 * of an input and the target after it, so no target crosses from one document into the next. Texts
 * follow one another without padding. A document with a prompt begins a new window where it would
 * otherwise be cut; one that is longer than a window goes on in the next. What stays free is filled
 * with `paddingId`, its targets ignored. With `separate`, every document begins a new window where it
 * would otherwise be cut, and windows say which tokens are of one document.
 *
 * @param sequenceLength tokens in a window.
 * @param paddingId the id of padding inputs.
 * @param options how they are packed.
 * @throws RangeError if `sequenceLength` is not a positive integer.
 * @throws Error if the documents have no token to learn.
 *
 * @example
 * ```ts
 * import { pack } from "@graft/ml/data";
 *
 * const ids = Int32Array.of(1, 7, 8, 9, 2);
 * const dataset = pack([{ ids, promptLength: 2 }], 6);
 * console.assert(dataset.window(0, 0).inputs.join(" ") === "1 7 8 9 0 0");
 * console.assert(dataset.window(0, 0).targets.join(" ") === "-100 8 9 2 -100 -100");
 * ```
 */
export function pack(
  documents: readonly TokenizedDocument[],
  sequenceLength: number,
  paddingId: number = 0,
  options: PackOptions = {},
): Dataset {
  const { separate = false } = options;
  if (!Number.isSafeInteger(sequenceLength) || sequenceLength < 1) {
    throw new RangeError(`pack: sequenceLength needs a positive integer, got ${sequenceLength}`);
  }
  const starts: number[] = [];
  let end = 0;
  for (const { ids, promptLength } of documents) {
    const pairs = Math.max(0, ids.length - 1);
    const free = (sequenceLength - end % sequenceLength) % sequenceLength;
    if ((separate || promptLength > 1) && pairs > free) end += free;
    starts.push(end);
    end += pairs;
  }
  const length = Math.ceil(end / sequenceLength);
  const inputs = new Int32Array(length * sequenceLength).fill(paddingId);
  const targets = new Int32Array(length * sequenceLength).fill(IGNORED_TARGET);
  const numbers = separate ? new Int32Array(length * sequenceLength) : null; // 0: padding
  documents.forEach(({ ids, promptLength, learnt }, i) => {
    if (ids.length < 2) return;
    inputs.set(ids.subarray(0, ids.length - 1), starts[i]);
    numbers?.fill(i + 1, starts[i], starts[i] + ids.length - 1);
    const given = Math.min(Math.max(promptLength, 1), ids.length);
    const wanted = ids.subarray(given);
    targets.set(
      learnt ? wanted.map((id, k) => learnt[given + k] ? id : IGNORED_TARGET) : wanted,
      starts[i] + given - 1,
    );
  });
  if (!targets.some((target) => target !== IGNORED_TARGET)) {
    throw new Error(`pack: ${documents.length} documents have no token to learn`);
  }
  return {
    length,
    sequenceLength,
    window(index: number): TokenWindow {
      checkIndex(index, length);
      const from = index * sequenceLength, to = from + sequenceLength;
      return {
        inputs: inputs.subarray(from, to),
        targets: targets.subarray(from, to),
        ...numbers && { documents: numbers.subarray(from, to) },
      };
    },
  };
}

/**
 * Holds out the last `share` of the windows, at least one, for evaluation.
 *
 * @returns the windows to train on, and those held out.
 * @throws RangeError if `share` is not between 0 and 1, or fewer than two windows are there.
 *
 * @example
 * ```ts
 * import { pack, splitTail } from "@graft/ml/data";
 *
 * const dataset = pack([{ ids: new Int32Array(101), promptLength: 1 }], 10);
 * const [train, heldOut] = splitTail(dataset, 0.1);
 * console.assert(train.length === 9 && heldOut.length === 1);
 * ```
 */
export function splitTail(
  dataset: Dataset,
  share: number,
): [train: Dataset, heldOut: Dataset] {
  if (!(share > 0 && share < 1)) {
    throw new RangeError(`splitTail: share needs to be between 0 and 1, got ${share}`);
  }
  if (dataset.length < 2) {
    throw new RangeError(
      `splitTail: needs at least 2 windows of ${dataset.sequenceLength} tokens, got ` +
        `${dataset.length}: use more text or a shorter sequence`,
    );
  }
  const held = Math.min(dataset.length - 1, Math.max(1, Math.round(dataset.length * share)));
  const cut = dataset.length - held;
  return [range(dataset, 0, cut), range(dataset, cut, dataset.length)];
}

function range(dataset: Dataset, from: number, to: number): Dataset {
  const { sequenceLength } = dataset;
  return {
    length: to - from,
    sequenceLength,
    window(index: number, epoch: number): TokenWindow {
      checkIndex(index, to - from);
      return dataset.window(from + index, epoch);
    },
  };
}

/** Fails where a window's number is not one of the dataset's. */
export function checkIndex(index: number, length: number): void {
  if (!Number.isSafeInteger(index) || index < 0 || index >= length) {
    throw new RangeError(`window: needs an index from 0 to ${length - 1}, got ${index}`);
  }
}

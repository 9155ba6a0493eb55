/**
 * Answers of different length as tensors, and a model's pass over them.
 *
 * @module
 */

import { type Tensor, tensor } from "../core/mod.ts";

/** A prompt and a sampled answer. */
export interface Answer {
  /** The prompt's tokens. */
  readonly prompt: readonly number[];
  /** The answer's tokens; the stop token that ended it is the last of them. */
  readonly tokens: readonly number[];
  /** Whether a stop token ended it: where not, the answer was cut off. */
  readonly ended: boolean;
}

/** Room in the tensors of a batch: where it is the same for every batch, so is the plan. */
export interface AnswerRoom {
  /** Tokens of the longest prompt and its answer together. Default: the batch's, in sixteens. */
  readonly total?: number;
  /** Tokens of the longest answer. Default: the batch's, in sixteens. */
  readonly answer?: number;
}

/**
 * Answers as tensors. Rows are padded on the right with token 0, which nothing reads: what counts is by
 * position, so a padding token may be the end token, or any other.
 */
export interface AnswerBatch {
  /** Rows. */
  readonly rows: number;
  /** Tokens of an answer, R. */
  readonly length: number;
  /** What the model reads: all tokens but each row's last, i32 [B, T]. */
  readonly ids: Tensor;
  /** Where, in B · T states, the one stands that each answer's token is chosen from, i32 [B · R]. */
  readonly states: Tensor;
  /** The answers' tokens, i32 [B · R]. */
  readonly tokens: Tensor;
  /** bool [B, R]: true where there is a token. */
  readonly mask: Tensor;
  /** How many tokens the answers have. */
  readonly count: number;
  /** Tokens of the longest prompt and its answer together. */
  readonly longest: number;
}

/**
 * The tensors of a batch of answers.
 *
 * Throws a `RangeError` where there is no answer, a prompt or an answer is empty, or one is longer than
 * the room.
 */
export function answerBatch(answers: readonly Answer[], room: AnswerRoom = {}): AnswerBatch {
  if (answers.length === 0) throw new RangeError("answerBatch: needs at least one answer");
  answers.forEach(({ prompt, tokens }, b) => {
    if (prompt.length === 0 || tokens.length === 0) {
      const what = prompt.length === 0 ? "prompt" : "answer";
      throw new RangeError(`answerBatch: ${what} ${b} is empty, it needs at least one token`);
    }
  });
  const rows = answers.length;
  const longest = Math.max(...answers.map((a) => a.prompt.length + a.tokens.length));
  const total = room.total ?? sixteens(longest);
  const length = room.answer ?? sixteens(Math.max(...answers.map((a) => a.tokens.length)));
  const width = total - 1; // the last token is read by nobody
  const ids = new Int32Array(rows * width);
  const states = new Int32Array(rows * length);
  const tokens = new Int32Array(rows * length);
  const mask = new Int32Array(rows * length);
  let count = 0;
  answers.forEach((answer, b) => {
    const all = [...answer.prompt, ...answer.tokens];
    if (all.length > total || answer.tokens.length > length) {
      throw new RangeError(
        `answerBatch: there is room for ${total} tokens, ${length} of them of an answer; row ${b} ` +
          `has ${all.length}, ${answer.tokens.length} of them of the answer`,
      );
    }
    ids.set(all.slice(0, -1), b * width);
    answer.tokens.forEach((token, k) => {
      states[b * length + k] = b * width + answer.prompt.length + k - 1;
      tokens[b * length + k] = token;
      mask[b * length + k] = 1;
    });
    count += answer.tokens.length;
  });
  return {
    rows,
    length,
    ids: tensor(ids, { shape: [rows, width] }),
    states: tensor(states),
    tokens: tensor(tokens),
    mask: tensor(mask, { shape: [rows, length] }).ne(0),
    count,
    longest,
  };
}

/** The values of rows [B, R], on the host, of each row as many as the answer has tokens. */
export function perAnswer(
  answers: readonly Answer[],
  length: number,
  values: ArrayLike<number>,
): Float32Array<ArrayBuffer>[] {
  return answers.map(({ tokens }, b) =>
    Float32Array.from({ length: tokens.length }, (_, k) => values[b * length + k])
  );
}

/** Rows of different length as one f32 tensor [B, R], padded with 0. */
export function padded(rows: readonly ArrayLike<number>[], length: number): Tensor {
  const all = new Float32Array(rows.length * length);
  rows.forEach((row, b) => all.set(Array.from(row), b * length));
  return tensor(all, { shape: [rows.length, length] });
}

function sixteens(n: number): number {
  return Math.ceil(n / 16) * 16;
}

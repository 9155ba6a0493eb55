/**
 * The texts of the recipe: passages of children's books, each with its first words as a prompt.
 */

import {
  type Dataset,
  generalText,
  gutenberg,
  pack,
  splitTail,
  tokenizeCached,
  type TokenizedDocument,
  type Tokenizer,
} from "@graft/ml/data";

/** A sentence or a few: the first words are given, the rest is to be written. */
export interface Passage {
  /** Beginning-of-text and the first words, as tokens. */
  readonly prompt: readonly number[];
  /** The rest and the end token. */
  readonly rest: readonly number[];
}

/** Tokens of a prompt at most. */
export const PROMPT = 12;
/** Tokens of an answer at most, the end token among them. */
export const ANSWER = 32;

/**
 * What ends an answer: stories15M has learnt to end a story with the token that begins the next, and
 * has never seen the tokenizer's end token.
 */
export const END = 1;

/** Letters of each book that are read. */
const LETTERS = 300_000;
/** Words of a prompt. */
const WORDS = 5;

/** All that the stages read. No passage is in two of the parts. */
export interface Texts {
  /** Whose prompts every policy is measured on. */
  readonly heldOut: readonly Passage[];
  /** Whose prompts get ranked answers. */
  readonly ranked: readonly Passage[];
  /** What fine-tuning learns, and whose prompts PPO answers. */
  readonly learnt: readonly Passage[];
  /** General text, for fine-tuning and PPO-ptx. */
  readonly general: Dataset;
  /** General text that nothing is trained on. */
  readonly generalHeldOut: Dataset;
}

/** Tokens of a row of running text. */
export const ROW = 128;

/**
 * The texts, with `ranked` prompts to rank answers to, and `heldOut` prompts and a quarter as many rows of
 * general text to measure policies on.
 *
 * Throws a `RangeError` where that leaves nothing to learn.
 */
export async function readTexts(
  tokenizer: Tokenizer,
  ranked: number,
  heldOut: number,
): Promise<Texts> {
  const all = await passages(tokenizer);
  if (heldOut + ranked >= all.length) {
    throw new RangeError(
      `the books have ${all.length} passages: too few to rank ${ranked} and hold out ${heldOut}`,
    );
  }
  const text = pack(await tokenizeCached(await generalText(), tokenizer), ROW);
  const [general, generalHeldOut] = splitTail(text, Math.ceil(heldOut / 4) / text.length);
  return {
    heldOut: all.slice(0, heldOut),
    ranked: all.slice(heldOut, heldOut + ranked),
    learnt: all.slice(heldOut + ranked),
    general,
    generalHeldOut,
  };
}

/** A passage as a document of which the prompt is given. */
export function asDocument({ prompt, rest }: Passage): TokenizedDocument {
  return { ids: Int32Array.from([...prompt, ...rest]), promptLength: prompt.length };
}

/**
 * Passages of two books that are not among the general text, in an order that depends on nothing but
 * the books.
 */
async function passages(tokenizer: Tokenizer): Promise<Passage[]> {
  const found: Passage[] = [];
  for (const book of await gutenberg(["burgess-busterbrown", "edgeworth-parents"])) {
    if (!("text" in book)) continue;
    for (const paragraph of book.text.slice(0, LETTERS).split(/\n\s*\n/)) {
      const text = paragraph.replace(/\s+/g, " ").trim();
      const sentences = Array.from(text.matchAll(/"?[A-Z][^.!?]*[.!?]"?(?= |$)/g), ([s]) => s);
      const lengths = sentences.map((sentence) => tokenizer.encode(sentence).length);
      for (let at = 0; at < sentences.length;) {
        // As many whole sentences as fit, at least one.
        let end = at + 1, length = lengths[at];
        while (end < sentences.length && length + lengths[end] < ANSWER) length += lengths[end++];
        const passage = passageOf(sentences.slice(at, end).join(" "), tokenizer);
        if (passage) found.push(passage);
        at = end;
      }
    }
  }
  return spread(found);
}

/** The passage of a text, or null where it is too short or too long. */
function passageOf(text: string, { bosId, encode }: Tokenizer): Passage | null {
  const prompt = Array.from(encode(text.split(" ").slice(0, WORDS).join(" ")));
  const all = Array.from(encode(text));
  const begins = prompt.every((id, i) => all[i] === id);
  const rest = all.slice(prompt.length);
  if (!begins || rest.length < 4 || rest.length >= ANSWER || prompt.length >= PROMPT) return null;
  return { prompt: [bosId!, ...prompt], rest: [...rest, END] };
}

/** In another order, which meets each once: neighbours come from far apart. */
function spread<T>(items: readonly T[]): T[] {
  const { length } = items;
  const divisor = (a: number, b: number): number => b === 0 ? a : divisor(b, a % b);
  let step = Math.floor(length * 0.618);
  while (divisor(step, length) !== 1) step++;
  return items.map((_, i) => items[(i * step) % length]);
}

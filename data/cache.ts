import type { ChatTemplate } from "./chat.ts";
import { tokenizeChat } from "./chat_tokens.ts";
import { cacheDirectory, fileSystem, reasonOf, sha256, writeWhole } from "./files.ts";
import type { Conversation, Document } from "./text.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A document as token ids. */
export interface TokenizedDocument {
  /** The ids: beginning (where the tokenizer has one), prompt, text, end. */
  readonly ids: Int32Array;
  /** How many of the first ids are given, not learnt: the beginning and the prompt. */
  readonly promptLength: number;
  /** One for each id: 1 if it is learnt. Absent if all after the prompt are. */
  readonly learnt?: Uint8Array;
}

/** How documents become tokens. */
export interface TokenizeOptions {
  /** Writes documents that are conversations. */
  readonly chat?: ChatTemplate;
  /** Is called with the number of documents done and of all. */
  readonly onProgress?: (done: number, all: number) => void;
}

/** Part of the cache key: raise it when the same documents give other ids. */
const FORMAT = 1;

/**
 * Turns documents into token ids, each with the tokenizer's beginning and end around it.
 *
 * The prompt of a document is what the ids of prompt and completion together share with the ids of
 * the prompt alone: the completion is tokenised as the text that follows. A conversation is written by
 * the option `chat`; of it only the assistant's tokens are learnt ({@linkcode tokenizeChat}).
 *
 * @throws Error if a document is a conversation and there is no option `chat`, or its template
 * cannot tell what is the assistant's; the message has the document's number, from 1.
 *
 * @example
 * ```ts
 * import { loadStories15M, loadTokenizer, tokenize } from "@graft/ml/data";
 *
 * const tokenizer = await loadTokenizer(await loadStories15M());
 * const [document] = tokenize([{ prompt: "Once upon", completion: " a time" }], tokenizer);
 * console.assert(document.ids.join(" ") === "1 9038 2501 263 931 2");
 * console.assert(document.promptLength === 3);
 * ```
 */
export function tokenize(
  documents: readonly Document[],
  tokenizer: Tokenizer,
  options: TokenizeOptions = {},
): TokenizedDocument[] {
  const { bosId, eosId } = tokenizer;
  return documents.map((document, index) => {
    if ("messages" in document) {
      const conversation = tokenizeConversation(document, index, tokenizer, options.chat);
      options.onProgress?.(index + 1, documents.length);
      return conversation;
    }
    const start = bosId === undefined ? 0 : 1;
    let ids: Int32Array;
    let promptLength = start;
    if ("text" in document) {
      ids = tokenizer.encode(document.text);
    } else {
      const prompt = tokenizer.encode(document.prompt);
      ids = tokenizer.encode(document.prompt + document.completion);
      let shared = 0;
      while (shared < prompt.length && prompt[shared] === ids[shared]) shared++;
      promptLength = start + shared;
    }
    const all = new Int32Array(start + ids.length + (eosId === undefined ? 0 : 1));
    if (bosId !== undefined) all[0] = bosId;
    all.set(ids, start);
    if (eosId !== undefined) all[all.length - 1] = eosId;
    options.onProgress?.(index + 1, documents.length);
    return { ids: all, promptLength };
  });
}

function tokenizeConversation(
  { messages, tools }: Conversation,
  index: number,
  tokenizer: Tokenizer,
  chat: ChatTemplate | undefined,
): TokenizedDocument {
  const where = `tokenize: document ${index + 1}`;
  if (chat === undefined) {
    throw new Error(`${where} is a conversation: give the model's template (loadChatTemplate)`);
  }
  try {
    return tokenizeChat(chat, messages, tokenizer, { tools });
  } catch (error) {
    throw new Error(`${where}: ${reasonOf(error)}`, { cause: error });
  }
}

/**
 * As {@linkcode tokenize}, but keeps the result on disk under the documents' content and the
 * tokenizer's identity: the next run reads it. A damaged file in the cache is made again.
 *
 * @param options.cache the cache folder; by default `GRAFT_CACHE`, `XDG_CACHE_HOME/graft` or
 * `~/.cache/graft`.
 * @throws Error as `tokenize`, or if the cache cannot be written.
 *
 * @example
 * ```ts
 * import { loadStories15M, loadTokenizer, tokenizeCached } from "@graft/ml/data";
 *
 * const tokenizer = await loadTokenizer(await loadStories15M());
 * const cache = await Deno.makeTempDir();
 * const first = await tokenizeCached([{ text: "Once upon" }], tokenizer, { cache });
 * const again = await tokenizeCached([{ text: "Once upon" }], tokenizer, { cache });
 * console.assert(first[0].ids.join() === again[0].ids.join());
 * ```
 */
export async function tokenizeCached(
  documents: readonly Document[],
  tokenizer: Tokenizer,
  options: TokenizeOptions & { cache?: string } = {},
): Promise<TokenizedDocument[]> {
  const fs = fileSystem("tokenize");
  const folder = options.cache ?? cacheDirectory();
  const how = options.chat === undefined ? "" : `${options.chat.identity}\n`;
  const key = await sha256(`${FORMAT}\n${tokenizer.identity}\n${how}${JSON.stringify(documents)}`);
  const path = `${folder}/tokens-${key}.bin`;
  const known = await fs.readFile(path).then(decode, () => undefined);
  if (known !== undefined) {
    options.onProgress?.(documents.length, documents.length);
    return known;
  }
  const tokenized = tokenize(documents, tokenizer, options);
  try {
    await fs.mkdir(folder, { recursive: true });
    await writeWhole(path, await encode(tokenized));
  } catch (error) {
    throw new Error(`tokenize: cannot write to the cache ${folder}: ${reasonOf(error)}`, {
      cause: error,
    });
  }
  return tokenized;
}

// A cache file: 32 bytes of SHA-256 over the rest; then int32s: the number of documents, for each
// its length and its prompt's, then all the ids. An id after the prompt that is not learnt is stored as
// its complement.

async function encode(documents: readonly TokenizedDocument[]): Promise<Uint8Array> {
  const count = documents.reduce((sum, { ids }) => sum + ids.length, 0);
  const words = new Int32Array(1 + 2 * documents.length + count);
  words[0] = documents.length;
  let at = 1 + 2 * documents.length;
  documents.forEach(({ ids, promptLength, learnt }, i) => {
    words.set([ids.length, promptLength], 1 + 2 * i);
    const isGiven = (_: number, k: number): boolean => k >= promptLength && learnt?.[k] === 0;
    words.set(learnt ? ids.map((id, k) => isGiven(id, k) ? ~id : id) : ids, at);
    at += ids.length;
  });
  const bytes = new Uint8Array(32 + words.byteLength);
  bytes.set(Uint8Array.fromHex(await sha256(new Uint8Array(words.buffer))));
  bytes.set(new Uint8Array(words.buffer), 32);
  return bytes;
}

async function decode(
  bytes: Uint8Array<ArrayBuffer>,
): Promise<TokenizedDocument[] | undefined> {
  const content = bytes.slice(32);
  if (content.length < 4 || content.length % 4 !== 0) return undefined;
  if (await sha256(content) !== bytes.subarray(0, 32).toHex()) return undefined;
  const words = new Int32Array(content.buffer);
  let at = 1 + 2 * words[0];
  return Array.from({ length: words[0] }, (_, i) => {
    const [length, promptLength] = words.subarray(1 + 2 * i);
    const ids = words.subarray(at, at += length);
    if (!ids.some((id) => id < 0)) return { ids, promptLength };
    const learnt = Uint8Array.from(ids, (id, k) => k >= promptLength && id >= 0 ? 1 : 0);
    return { ids: ids.map((id) => id < 0 ? ~id : id), promptLength, learnt };
  });
}

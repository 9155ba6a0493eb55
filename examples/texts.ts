/**
 * The texts of a run, as windows of tokens: what is learnt, and general text. A tail of each is held out.
 *
 * @module
 */

import {
  type Dataset,
  type Document,
  generalText,
  loadChatTemplate,
  mix,
  pack,
  readDocuments,
  shakespeare,
  splitTail,
  tokenizeCached,
} from "@graft/ml/data";
import type { Base } from "./base.ts";
import type { Settings } from "./settings.ts";

/** Windows of one length. */
export interface Texts {
  /** To train on, the share of general text among them. */
  readonly train: Dataset;
  /** The text's held-out tail. */
  readonly heldOut: Dataset;
  /** The general text's. */
  readonly generalHeldOut: Dataset;
  /** How the text begins, as long as a window. */
  readonly start: readonly number[];
}

/**
 * The texts that `settings` name, in windows of `seq` tokens. Of a prompt with a completion only the
 * completion is learnt, of a conversation what the assistant says, as the model's template writes it.
 *
 * Throws an `Error` where a file cannot be read, or the model has no template for conversations.
 */
export async function loadTexts(
  { data, mix: share, seed }: Settings,
  { folder, tokenizer }: Base,
  seq: number,
): Promise<Texts> {
  const windows = async (documents: readonly Document[]): Promise<Dataset> => {
    const talks = documents.some((document) => "messages" in document);
    const chat = talks ? await loadChatTemplate(folder) : undefined;
    return pack(await tokenizeCached(documents, tokenizer, { chat }), seq);
  };
  const text = await windows(data ? await readDocuments(data) : await shakespeare());
  const [own, heldOut] = splitTail(text, 0.05);
  const [general, generalHeldOut] = splitTail(await windows(await generalText()), 0.01);
  const start = Array.from(text.window(0, 0).inputs);
  return { train: mix(own, general, share, seed), heldOut, generalHeldOut, start };
}

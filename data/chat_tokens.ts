import type { TokenizedDocument } from "./cache.ts";
import type { ChatMessage, ChatTemplate } from "./chat.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** How a conversation becomes tokens. */
export interface TokenizeChatOptions {
  /** The tools that the assistant may call. */
  readonly tools?: readonly unknown[];
  /** Which messages of the assistant are learnt: all by default. */
  readonly turns?: "all" | "last";
}

/**
 * Turns a conversation into token ids of which only the assistant's are learnt. The template writes
 * whatever begins and ends it; the tokenizer adds nothing.
 *
 * What is the assistant's is told by the template's `{% generation %}` blocks. A template without
 * them is run on the conversation up to each message: what an assistant's message adds after its
 * generation prompt is learnt, with the token that ends it. A token that lies across a border is
 * learnt at the beginning of such a text, and not at its end.
 *
 * @throws Error if the conversation has no message of the assistant, the template refuses it, or the
 * text up to a message is not how the whole text begins (a template may leave out earlier thoughts):
 * then `turns: "last"`, or a template with `{% generation %}`, helps.
 *
 * @example
 * ```ts
 * import { ChatTemplate, loadStories15M, loadTokenizer, tokenizeChat } from "@graft/ml/data";
 *
 * const tokenizer = await loadTokenizer(await loadStories15M());
 * const template = new ChatTemplate(
 *   "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}" +
 *     "{% if add_generation_prompt %}assistant:{% endif %}",
 * );
 * const { ids, promptLength } = tokenizeChat(template, [
 *   { role: "user", content: "One plus one?" },
 *   { role: "assistant", content: "Two" },
 * ], tokenizer);
 * console.assert(tokenizer.decode(ids.subarray(promptLength)).trim() === "Two");
 * ```
 */
export function tokenizeChat(
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  tokenizer: Tokenizer,
  options: TokenizeChatOptions = {},
): TokenizedDocument {
  const last = messages.findLastIndex(({ role }) => role === "assistant");
  if (last < 0) {
    throw new Error("tokenize chat: the conversation has no message of the assistant to learn");
  }
  const marked = template.renderMarked(messages, options);
  const { text, spans } = marked ?? spansOfPrefixes(template, messages, options, last);
  if (options.turns === "last") spans.splice(0, spans.length - 1);

  const ids = tokenizer.encode(text);
  const learnt = new Uint8Array(ids.length);
  for (const [from, to] of spans) {
    learnt.fill(
      1,
      tokensBefore(text, from, ids, tokenizer),
      tokensBefore(text, to, ids, tokenizer),
    );
  }
  const promptLength = learnt.indexOf(1);
  if (promptLength < 0) {
    throw new Error("tokenize chat: the template writes no text of the assistant to learn");
  }
  // As a prompt and its completion where it is no more than that.
  return learnt.includes(0, promptLength) ? { ids, promptLength, learnt } : { ids, promptLength };
}

/** How many of the ids stand for the text before a place, whole. */
function tokensBefore(
  text: string,
  place: number,
  ids: Int32Array,
  tokenizer: Tokenizer,
): number {
  if (place === text.length) return ids.length;
  const before = tokenizer.encode(text.slice(0, place));
  let shared = 0;
  while (shared < before.length && before[shared] === ids[shared]) shared++;
  return shared;
}

/** Where the assistant's texts are, by how the text grows with each of its messages. */
function spansOfPrefixes(
  template: ChatTemplate,
  messages: readonly ChatMessage[],
  options: TokenizeChatOptions,
  last: number,
): { text: string; spans: [from: number, to: number][] } {
  const { tools, turns } = options;
  const text = template.render(messages, { tools });
  const spans: [number, number][] = [];
  messages.forEach(({ role }, i) => {
    if (role !== "assistant" || (turns === "last" && i < last)) return;
    if (i === 0) {
      throw new Error(
        "tokenize chat: the first message is the assistant's, and the template does not say " +
          "where its text begins: put a message before it, or use {% generation %} in the template",
      );
    }
    const before = template.render(messages.slice(0, i), { tools, addGenerationPrompt: true });
    const after = i + 1 === messages.length ? text : template.render(messages.slice(0, i + 1), {
      tools,
    });
    for (const prefix of [before, after]) {
      if (text.startsWith(prefix)) continue;
      let at = 0;
      while (prefix[at] === text[at]) at++;
      const which = prefix === before ? "before" : "up to";
      throw new Error(
        `tokenize chat: the text ${which} message ${i + 1} is not how the whole conversation ` +
          `begins: at ${at}, ${JSON.stringify(prefix.slice(at, at + 20))} is not ` +
          `${
            JSON.stringify(text.slice(at, at + 20))
          }. Learn one message at a time (turns: "last", ` +
          `the conversation cut after each), or mark the assistant's text in the template with ` +
          `{% generation %} and {% endgeneration %}`,
      );
    }
    spans.push([before.length, after.length]);
  });
  return { text, spans };
}

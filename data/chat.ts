import { Template } from "@huggingface/jinja";
import { fileSystem, reasonOf } from "./files.ts";

/** Who says a message. */
export type ChatRole = "system" | "developer" | "user" | "assistant" | "tool";

/** One message of a conversation. A template may use further fields, such as `tool_calls`. */
export interface ChatMessage {
  /** Who says it. */
  readonly role: ChatRole;
  /** What is said; null only where an assistant calls tools and says nothing. */
  readonly content: string | null;
  /** What else the template knows. */
  readonly [field: string]: unknown;
}

/** How a conversation is written. */
export interface RenderChatOptions {
  /** End with what begins an assistant's message, for a model to go on; false by default. */
  readonly addGenerationPrompt?: boolean;
  /** The tools that the assistant may call, each as a JSON schema. */
  readonly tools?: readonly unknown[];
}

/** What a {@linkcode ChatTemplate} is made with. */
export interface ChatTemplateOptions {
  /** What the template is given at each rendering: `bos_token`, `enable_thinking`, … */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** The template for conversations with tools, where it is another one. */
  readonly withTools?: string;
  /** What errors call it. */
  readonly name?: string;
}

const ROLES: readonly string[] = ["system", "developer", "user", "assistant", "tool"];

/**
 * A Jinja template that writes a conversation as the text a model was trained on.
 *
 * @example
 * ```ts
 * import { ChatTemplate } from "@graft/ml/data";
 *
 * const template = new ChatTemplate(
 *   "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" +
 *     "{% if add_generation_prompt %}<assistant>{% endif %}",
 * );
 * const text = template.render([{ role: "user", content: "Hi" }], { addGenerationPrompt: true });
 * console.assert(text === "<user>Hi<assistant>");
 * ```
 */
export class ChatTemplate {
  /** The template's text. */
  readonly source: string;
  /** Differs between templates that may write another text. */
  readonly identity: string;
  readonly #name: string;
  readonly #variables: Readonly<Record<string, unknown>>;
  readonly #plain: Template;
  readonly #withTools: Template;
  /** The template with marks where an assistant's text begins and ends, if it says where. */
  readonly #marked: Template | undefined;
  readonly #markedWithTools: Template | undefined;

  /**
   * Parses a template.
   *
   * @throws Error if it is not one.
   */
  constructor(source: string, options: ChatTemplateOptions = {}) {
    const { variables = {}, withTools = source, name = "chat template" } = options;
    this.source = source;
    this.identity = JSON.stringify([source, withTools, variables]);
    this.#name = name;
    this.#variables = variables;
    this.#plain = parse(source, name);
    this.#withTools = withTools === source ? this.#plain : parse(withTools, name);
    this.#marked = parseMarked(source, name);
    this.#markedWithTools = withTools === source ? this.#marked : parseMarked(withTools, name);
  }

  /**
   * The text of a conversation.
   *
   * @throws Error if a message lacks its fields, or the template refuses the conversation.
   */
  render(messages: readonly ChatMessage[], options: RenderChatOptions = {}): string {
    checkMessages(messages, "render chat");
    return this.#run(options.tools ? this.#withTools : this.#plain, messages, options);
  }

  /**
   * The text of a conversation with where, in UTF-16 units, each text of the assistant begins and
   * ends; undefined if the template does not say (`{% generation %}`).
   *
   * @throws Error as `render`.
   */
  renderMarked(
    messages: readonly ChatMessage[],
    options: RenderChatOptions = {},
  ): { text: string; spans: [from: number, to: number][] } | undefined {
    const template = options.tools ? this.#markedWithTools : this.#marked;
    if (template === undefined) return undefined;
    const text = this.render(messages, options);
    const spans: [number, number][] = [];
    let plain = "", from = 0;
    for (const piece of this.#run(template, messages, options).split(MARKS)) {
      if (piece === BEGIN) from = plain.length;
      else if (piece === END) spans.push([from, plain.length]);
      else plain += piece;
    }
    // A `-` at a tag before the mark reaches only as far as the mark: then the marks do not tell.
    return plain === text ? { text, spans } : undefined;
  }

  #run(
    template: Template,
    messages: readonly ChatMessage[],
    { addGenerationPrompt = false, tools }: RenderChatOptions,
  ): string {
    try {
      return template.render({
        ...this.#variables,
        messages,
        add_generation_prompt: addGenerationPrompt,
        ...(tools === undefined ? {} : { tools }),
      });
    } catch (error) {
      throw new Error(`render chat: ${this.#name}: ${reasonOf(error)}`, { cause: error });
    }
  }
}

// Characters of a private use area: nobody writes them.
const BEGIN = "\u{F6A51}", END = "\u{F6A52}", MARKS = /(\u{F6A51}|\u{F6A52})/u;

function parse(source: string, name: string): Template {
  try {
    return new Template(source);
  } catch (error) {
    throw new Error(`chat template: ${name} is not a template: ${reasonOf(error)}`, {
      cause: error,
    });
  }
}

/**
 * The library drops `{% generation %}` and `{% endgeneration %}`, which say what is the assistant's.
 * Here they become marks; the white space around them goes as the library has it.
 */
function parseMarked(source: string, name: string): Template | undefined {
  if (!/{%-?\s*generation\s*-?%}/.test(source)) return undefined;
  const marked = source
    .replace(/^[ \t]*({[#%-])/gm, "$1")
    .replace(/({%-?\s*(?:end)?generation\s*-?%})\n/g, "$1")
    .replace(
      /(\s*){%(-?)\s*(end)?generation\s*(-?)%}(\s*)/g,
      (_, before, left, end, right, after) =>
        (left ? "" : before) + (end ? END : BEGIN) + (right ? "" : after),
    );
  return parse(marked, name);
}

/**
 * Loads the chat template of a model's folder: `chat_template.jinja`, else `chat_template` of
 * `tokenizer_config.json`, with the special tokens that the latter names.
 *
 * @param options.variables what the template is given besides, such as `enable_thinking`.
 * @throws Error if there is none, or it is not a template; the message names the file.
 *
 * @example
 * ```ts
 * import { loadChatTemplate } from "@graft/ml/data";
 *
 * const folder = await Deno.makeTempDir();
 * const chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}";
 * const config = JSON.stringify({ eos_token: "</s>", chat_template });
 * await Deno.writeTextFile(`${folder}/tokenizer_config.json`, config);
 * const template = await loadChatTemplate(folder);
 * console.assert(template.render([{ role: "user", content: "Hi" }]) === "Hi</s>");
 * ```
 */
export async function loadChatTemplate(
  folder: string,
  options: { variables?: Readonly<Record<string, unknown>> } = {},
): Promise<ChatTemplate> {
  const fs = fileSystem("load chat template");
  const read = async (path: string): Promise<string | undefined> => {
    if (!await fs.stat(path).then(() => true, () => false)) return undefined;
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(await fs.readFile(path));
    } catch (error) {
      throw new Error(`load chat template: cannot read ${path}: ${reasonOf(error)}`, {
        cause: error,
      });
    }
  };
  const configFile = `${folder}/tokenizer_config.json`, ownFile = `${folder}/chat_template.jinja`;
  let config: Record<string, unknown>;
  try {
    config = JSON.parse(await read(configFile) ?? "{}");
  } catch (error) {
    throw new Error(`load chat template: ${configFile} is not JSON: ${reasonOf(error)}`, {
      cause: error,
    });
  }
  const variables: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(config)) {
    const token = typeof value === "string" ? value : (value as { content?: unknown })?.content;
    if (key.endsWith("_token") && typeof token === "string") variables[key] = token;
  }
  Object.assign(variables, options.variables);

  const own = await read(ownFile);
  if (own !== undefined) return new ChatTemplate(own, { variables, name: ownFile });
  const { chat_template: inConfig } = config;
  if (typeof inConfig === "string") {
    return new ChatTemplate(inConfig, { variables, name: configFile });
  }
  // Several by name: [{ name: "default", template }, { name: "tool_use", template }, …].
  if (Array.isArray(inConfig)) {
    const byName = new Map(inConfig.map((each) => [each?.name, each?.template]));
    const source = byName.get("default"), withTools = byName.get("tool_use");
    if (typeof source === "string") {
      const other = typeof withTools === "string" ? { withTools } : {};
      return new ChatTemplate(source, { variables, name: configFile, ...other });
    }
  }
  throw new Error(
    `load chat template: ${folder} has none: needs chat_template.jinja, or a "chat_template" in ` +
      `tokenizer_config.json: take a model that was trained on conversations, or write one`,
  );
}

/**
 * Fails where messages are not a conversation.
 *
 * @param where begins the error's message.
 */
export function checkMessages(
  messages: unknown,
  where: string,
): asserts messages is readonly ChatMessage[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new Error(`${where}: "messages" needs a list of at least one message`);
  }
  messages.forEach((message, i) => {
    const what = `${where}: message ${i + 1}`;
    if (typeof message !== "object" || message === null || Array.isArray(message)) {
      throw new Error(`${what} needs an object with "role" and "content"`);
    }
    const { role, content, tool_calls } = message as Record<string, unknown>;
    if (!ROLES.includes(role as string)) {
      throw new Error(`${what}: "role" needs one of ${ROLES.join(", ")}; got ${show(role)}`);
    }
    const calls = role === "assistant" && Array.isArray(tool_calls) && tool_calls.length > 0;
    if (typeof content !== "string" && !(calls && (content ?? null) === null)) {
      throw new Error(`${what}: "content" needs a string; got ${show(content)}`);
    }
  });
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? "none").slice(0, 40);
}

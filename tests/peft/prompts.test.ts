/** Soft prompts: how they start, what they leave as it was, caches, files, and what cannot be. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { init, manualSeed, noGrad, tensor, useDevice } from "@graft/ml";
import {
  type CausalLM,
  generate,
  generateBatch,
  GPT2LMHeadModel,
  LlamaForCausalLM,
  MistralForCausalLM,
} from "@graft/ml/nn";
import { AdamW, loadCheckpoint, saveCheckpoint } from "@graft/ml/optim";
import {
  adapterStatus,
  countParameters,
  deleteAdapter,
  inject,
  injectPrompt,
  type InjectPromptOptions,
  loadAdapter,
  mergeAndUnload,
  type PromptConfig,
  resolvePromptConfig,
  saveAdapter,
  setActive,
  unload,
  withoutAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";

const sizes = {
  vocab_size: 23,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 32,
};
const llama = (): LlamaForCausalLM => new LlamaForCausalLM(sizes).eval() as LlamaForCausalLM;
const text = [3, 14, 1, 5, 9];
const after = [2, 6, 5, 3];
const n = 4;
/** A configuration of each method, with what it starts from. */
const METHODS: Record<string, [PromptConfig, InjectPromptOptions?]> = {
  prompt: [{ peft_type: "PROMPT_TUNING", num_virtual_tokens: n }],
  prefix: [{ peft_type: "PREFIX_TUNING", num_virtual_tokens: n }, { tokens: text }],
  projection: [{ peft_type: "PREFIX_TUNING", num_virtual_tokens: n, prefix_projection: true }],
  encoder: [{ peft_type: "P_TUNING", num_virtual_tokens: n, encoder_hidden_size: 8 }],
  lstm: [{
    peft_type: "P_TUNING",
    num_virtual_tokens: n,
    encoder_hidden_size: 4,
    encoder_reparameterization_type: "LSTM",
    encoder_dropout: 0.1,
  }],
};

async function states(model: CausalLM, ids: readonly number[]): Promise<Float32Array> {
  const hidden = noGrad(() => model.forward(tensor([ids], { dtype: "i32" })));
  return await hidden.data() as Float32Array;
}

function apart(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assertEquals(a.length, b.length);
  return Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
}

async function batchOf(model: CausalLM, prompts: number[][]): Promise<number[][]> {
  const rows = await generateBatch(model, prompts, { maxTokens: 5, stopTokens: [] });
  return rows.map(({ tokens }) => tokens);
}

Deno.test("prompts: what cannot be is refused by its key", () => {
  const model = { hidden: 16, layers: 2, queryHeads: 4, heads: 2, headDim: 4, positions: 32 };
  const prompt = { peft_type: "PROMPT_TUNING", num_virtual_tokens: 4 } as const;
  const prefix = { peft_type: "PREFIX_TUNING", num_virtual_tokens: 4 } as const;
  const bad: [Record<string, unknown>, string][] = [
    [{ peft_type: "LORA" }, "peft_type must be PROMPT_TUNING, PREFIX_TUNING, P_TUNING"],
    [{ ...prompt, num_virtual_tokens: 0 }, "num_virtual_tokens must be"],
    [{ ...prompt, num_virtual_tokens: 32 }, "below the model's 32 positions"],
    [{ ...prompt, prompt_tuning_init: "BEST" }, "prompt_tuning_init"],
    [{ ...prompt, prompt_tuning_init: "TEXT" }, "prompt_tuning_init_text"],
    [
      { ...prompt, prompt_tuning_init: "TEXT", prompt_tuning_init_text: "a" },
      "tokenizer_name_or_path",
    ],
    [{ ...prompt, num_transformer_submodules: 2 }, "num_transformer_submodules"],
    [{ ...prefix, init_weights: "one" }, "init_weights"],
    [{ ...prefix, prefix_projection: 1 }, "prefix_projection"],
    [{ ...prefix, encoder_hidden_size: 0.5 }, "encoder_hidden_size"],
    [{ ...prompt, peft_type: "P_TUNING", encoder_reparameterization_type: "RNN" }, "encoder_rep"],
    [{ ...prefix, modules_to_save: "lm_head" }, "modules_to_save must be a list"],
    [{ ...prompt, peft_type: "P_TUNING", encoder_num_layers: 0 }, "encoder_num_layers"],
    [{ ...prompt, peft_type: "P_TUNING", encoder_dropout: 1 }, "encoder_dropout"],
  ];
  for (const [config, part] of bad) {
    assertThrows(() => resolvePromptConfig(config as PromptConfig, model), Error, part);
  }
  const other = assertThrows(
    () => resolvePromptConfig({ ...prefix, num_layers: 3, token_dim: 16 }, model, "x"),
    RangeError,
  );
  assertEquals(
    other.message,
    "x: it is for another base model: num_layers is 3, the model's is 2; token_dim is 16, the " +
      "model's is 8",
  );
  const told: string[] = [];
  const { encoder_hidden_size } = resolvePromptConfig(
    { ...prefix, newer: 1 },
    model,
    "x",
    (message) => told.push(message),
  );
  assertEquals(encoder_hidden_size, 8);
  assertEquals(told, ["x: unknown keys are kept but not used: newer"]);
});

Deno.test("prompts: a 7B model's prefix is counted without its weights", async () => {
  const device = await init({ device: "meta" });
  const model = new LlamaForCausalLM({
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
  });
  await injectPrompt(model, { peft_type: "PREFIX_TUNING", num_virtual_tokens: 8 }, {
    tokens: text,
  });
  assertEquals(countParameters(model).trainable, 8 * 2 * 32 * 4096);
  await device.close();
  useDevice(null);
});

Deno.test("prompts: a prompt that is a text is as good as the text, in every family", async () => {
  const device = await init({ device: "cpu" });
  manualSeed(1);
  const { vocab_size } = sizes;
  const models: CausalLM[] = [
    new LlamaForCausalLM(sizes),
    new MistralForCausalLM({ ...sizes, sliding_window: 3 }),
    new GPT2LMHeadModel({ vocab_size, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 32 }),
  ];
  for (const model of models) {
    for (const p of model.parameters()) p.assign(p.mul(4)); // small weights hide mistakes
    model.eval();
    const read = (await states(model, [...text, ...after])).slice(-after.length * 16);
    const alone = await states(model, after);
    assert(apart(read, alone) > 1e-2);
    const inits: [PromptConfig, string][] = [[{
      peft_type: "PROMPT_TUNING",
      num_virtual_tokens: text.length,
      prompt_tuning_init: "TEXT",
      prompt_tuning_init_text: "a text",
      base_model_name_or_path: "tiny",
    }, "vectors"], [{ peft_type: "PREFIX_TUNING", num_virtual_tokens: text.length }, "prefix"]];
    for (const [config, what] of inits) {
      await injectPrompt(model, config, { tokens: text });
      const name = `${model.constructor.name}, ${what}`;
      assert(apart(await states(model, after), read) < 1e-4, name);
      const batch = (): Promise<number[][]> => batchOf(model, [after, [2]]);
      if (model instanceof MistralForCausalLM) {
        await assertRejects(batch, RangeError, "a window of 3");
      } else {
        const longer = [[...text, ...after], [...text, 2]];
        assertEquals(
          await batch(),
          await withoutAdapters(model, () => batchOf(model, longer)),
          name,
        );
      }
      unload(model);
      assertEquals(apart(await states(model, after), alone), 0);
    }
  }
  await device.close();
  useDevice(null);
});

forEachDevice(
  "prompts: only the prompt is trained, all of it, and it can be left out",
  async (device) => {
    const names = device.name === "cpu" ? Object.keys(METHODS) : ["prefix"];
    for (const name of names) {
      manualSeed(2);
      const model = llama();
      const base = await states(model, after);
      const before = await Promise.all(
        [...model.stateDict()].map(async ([key, v]) => [key, await v.data()] as const),
      );
      await injectPrompt(model, ...METHODS[name]);
      assertEquals([...model.stateDict().keys()], before.map(([key]) => key));
      const start = await Promise.all(model.trainable().map(async (p) => await p.data()));
      assert(model.trainable().every((p) => p.name!.startsWith("prompt.adapters.default.")));

      const optimizer = new AdamW(model.trainable(), { lr: 0.05 });
      const targets = tensor([[6, 5, 3, 7]], { dtype: "i32" });
      const losses: number[] = [];
      for (let step = 0; step < 3; step++) {
        const loss = model.loss({ inputs: tensor([after], { dtype: "i32" }), targets });
        loss.backward();
        await optimizer.step();
        optimizer.zeroGrad();
        losses.push(await loss.item());
      }
      assert(losses[2] < losses[0], `${name}: ${losses}`);
      for (const [i, p] of model.trainable().entries()) {
        assert(apart(await p.data(), start[i]) > 1e-3, `${name}: ${p.name}`);
      }
      for (const [key, value] of before) {
        assertEquals(
          await model.stateDict().get(key)!.data(),
          value,
        );
      }
      assertEquals(apart(await withoutAdapters(model, () => states(model, after)), base), 0);
      assert(apart(await states(model, after), base) > 1e-3);
    }
  },
);

forEachDevice("prompts: a cache never loses the prompt", async (device) => {
  const names = device.name === "cpu" ? Object.keys(METHODS) : ["prompt"];
  for (const name of names) {
    manualSeed(3);
    const model = llama();
    for (const p of model.parameters()) p.assign(p.mul(4));
    await injectPrompt(model, ...METHODS[name]);
    // Token by token, a few at a time, or all at once: the same states.
    const ids = [...after, 1, 8];
    const whole = await states(model, ids);
    using cache = model.createCache(1, 8);
    for (const parts of device.name === "cpu" ? [[1, 1, 1, 1, 1, 1], [4, 2]] : [[4, 2]]) {
      cache.reset();
      const seen: number[] = [];
      let at = 0;
      for (const size of parts) {
        const part = tensor([ids.slice(at, at += size)], { dtype: "i32" });
        seen.push(...await noGrad(() => model.forward(part, { cache })).data());
      }
      assert(apart(seen, whole) < 1e-4, `${name}: ${parts}`);
    }
    if (device.name !== "cpu") continue;
    // Rows padded on the left as each alone.
    const both = await batchOf(model, [after, [7, 1]]);
    assertEquals(both, [...await batchOf(model, [after]), ...await batchOf(model, [[7, 1]])], name);

    const one = tensor([[1]], { dtype: "i32" });
    setActive(model);
    assertThrows(() => model.forward(one, { cache }), RangeError, "a prompt of 4 virtual tokens");
    setActive(model, "default");
    // 32 positions, of which the prompt takes four.
    const long = Array.from({ length: 29 }, () => 1);
    await assertRejects(() => states(model, long), RangeError, "leaves 28 of 32 positions");
    await assertRejects(
      async () => await generate(model, long).next(),
      RangeError,
      "1 to 28 tokens, which a soft prompt of 4 leaves",
    );
    const last = await generateBatch(model, [long.slice(3)], { maxTokens: 9, stopTokens: [] });
    assertEquals(last[0].tokens.length, 2);
  }
});

Deno.test("prompts: starts, and the options that contradict them", async () => {
  const device = await init({ device: "cpu" });
  manualSeed(4);
  const model = llama();
  const rows = async (config: PromptConfig, options?: InjectPromptOptions): Promise<number[][]> => {
    await injectPrompt(model, config, options);
    const weight = await model.trainable()[0].data();
    unload(model);
    const width = weight.length / n;
    return Array.from({ length: n }, (_, i) => [...weight.subarray(i * width, (i + 1) * width)]);
  };
  const table = await model.model.embed_tokens.weight.data();
  const vector = (id: number): number[] => [...table.subarray(id * 16, (id + 1) * 16)];
  const [prompt] = METHODS.prompt, [prefix] = METHODS.prefix, [projection] = METHODS.projection;
  const words = new Set(Array.from({ length: 23 }, (_, id) => vector(id).join()));
  const isWord = (row: number[]): boolean => words.has(row.join());
  assert((await rows(prompt)).every(isWord));
  assert(!(await rows({ ...prompt, prompt_tuning_init: "RANDOM" })).some(isWord));
  const written = {
    ...prompt,
    prompt_tuning_init: "TEXT",
    prompt_tuning_init_text: "a text",
    tokenizer_name_or_path: "tiny",
  } as const;
  assertEquals(await rows(written, { tokens: [7, 2] }), [7, 2, 7, 2].map(vector));
  assertEquals(await rows(written, { tokens: text }), text.slice(0, n).map(vector));
  const zeros = Array.from({ length: n }, () => Array<number>(2 * 2 * 8).fill(0));
  assertEquals(await rows({ ...prefix, init_weights: "zero" }), zeros);
  assertEquals(await rows(prefix, { start: "zero" }), zeros);
  assert((await rows(prefix, { start: "random" })).flat().some((x) => Math.abs(x) > 1));

  const bad: [PromptConfig, InjectPromptOptions, string][] = [
    [prefix, {}, "starts from the keys and values of a text"],
    [prefix, { tokens: [] }, "got none"],
    [prefix, { tokens: [23] }, "tokens in [0, 23), got 23"],
    [prefix, { tokens: text, start: "zero" }, "tokens are for"],
    [{ ...prefix, init_weights: "zero" }, { start: "random" }, "contradicts"],
    [projection, { tokens: text }, "leave out prefix_projection"],
    [projection, { start: "text" }, "leave out prefix_projection"],
    [prompt, { tokens: text }, 'prompt_tuning_init "TEXT"'],
    [prompt, { start: "zero" }, "an option of PREFIX_TUNING"],
    [written, {}, "needs the option tokens"],
    [METHODS.encoder[0], { tokens: text }, "does not start from tokens"],
    [prompt, { name: "a.b" }, "an adapter's name"],
    [prompt, { name: "__base__" }, 'not "__base__", got "__base__"'],
    [{ ...prompt, modules_to_save: ["heads"] }, {}, "names no module of LlamaForCausalLM"],
  ];
  for (const [config, options, part] of bad) {
    await assertRejects(() => injectPrompt(model, config, options), Error, part);
    assert(model.prompt === null && model.trainable().length === 0);
  }
  await device.close();
  useDevice(null);
});

Deno.test("prompts: several of them, beside LoRA, in files", async () => {
  const device = await init({ device: "cpu" });
  const folder = await Deno.makeTempDir();
  manualSeed(5);
  const model = llama();
  for (const p of model.parameters()) p.assign(p.mul(4));
  const base = await states(model, after);
  const seen: Record<string, Float32Array> = {};
  for (const [name, [config, options]] of Object.entries(METHODS)) {
    await injectPrompt(model, config, { ...options, name });
    seen[name] = await states(model, after);
    await saveAdapter(model, `${folder}/${name}`, { name });
  }
  inject(model, { init_lora_weights: false }, { name: "lora" });
  const lora = await states(model, after);
  for (const name of Object.keys(METHODS)) {
    setActive(model, name);
    assertEquals(apart(await states(model, after), seen[name]), 0);
  }
  setActive(model, "lora", "prefix");
  const both = await states(model, after);
  assertEquals(adapterStatus(model).active.toSorted(), ["lora", "prefix"]);
  await assertRejects(() => mergeAndUnload(model), Error, "which no weight can hold");
  const all = [base, lora, both, ...Object.values(seen)];
  all.forEach((x, i) => all.slice(0, i).forEach((y) => assert(apart(x, y) > 1e-3)));
  assertThrows(() => setActive(model, "prompt", "prefix"), Error, "one soft prompt");
  assertEquals(apart(await states(model, after), both), 0);
  deleteAdapter(model, "prefix");
  assertEquals(apart(await states(model, after), lora), 0);
  await assertRejects(
    () => injectPrompt(model, METHODS.prompt[0], { name: "lora" }),
    Error,
    "already",
  );
  assertThrows(() => inject(model, {}, { name: "prompt" }), Error, "already");
  unload(model);
  assertEquals(apart(await states(model, after), base), 0);

  for (const name of Object.keys(METHODS)) {
    manualSeed(6);
    await loadAdapter(model, `${folder}/${name}`, { trainable: name === "projection" });
    assert(apart(await states(model, after), seen[name]) < 1e-5, name);
    // What is loaded are the rows: they are trained on as they are.
    if (name === "projection") assertEquals(model.trainable().length, 1);
    unload(model);
  }
  // Another base: all that differs is listed, and nothing changes.
  const other = new LlamaForCausalLM({ ...sizes, num_hidden_layers: 3, num_key_value_heads: 4 });
  await assertRejects(
    () => loadAdapter(other, `${folder}/prefix`),
    RangeError,
    "num_layers is 2, the model's is 3; num_attention_heads is 2, the model's is 4; token_dim is 8",
  );
  const file = `${folder}/prefix/adapter_config.json`;
  const config = await Deno.readTextFile(file);
  await Deno.writeTextFile(
    file,
    config.replace('"num_virtual_tokens": 4', '"num_virtual_tokens": 5'),
  );
  await assertRejects(
    () => loadAdapter(model, `${folder}/prefix`),
    Error,
    "prompt_embeddings (needs [5, 32], has [4, 32])",
  );
  await Deno.writeTextFile(file, config.replace("PREFIX_TUNING", "CARTRIDGE"));
  await assertRejects(
    () => loadAdapter(model, `${folder}/prefix`),
    TypeError,
    '"CARTRIDGE" is not built; LORA, PROMPT_TUNING, PREFIX_TUNING and P_TUNING are',
  );
  assert(other.prompt === null && model.prompt === null);
  await Deno.remove(folder, { recursive: true });
  await device.close();
  useDevice(null);
});

Deno.test("prompts: training goes on from a checkpoint to the bit, with a projection too", async () => {
  const device = await init({ device: "cpu" });
  const folder = await Deno.makeTempDir();
  for (const name of ["prefix", "projection", "encoder", "lstm"]) {
    const start = async (seed: number): Promise<[LlamaForCausalLM, AdamW]> => {
      manualSeed(7);
      const model = llama();
      manualSeed(seed);
      await injectPrompt(model, ...METHODS[name]);
      return [model, new AdamW(model.trainable(), { lr: 0.01 })];
    };
    const step = async (model: LlamaForCausalLM, optimizer: AdamW): Promise<void> => {
      const inputs = tensor([after], { dtype: "i32" });
      model.loss({ inputs, targets: tensor([[6, 5, 3, 7]], { dtype: "i32" }) }).backward();
      await optimizer.step();
      optimizer.zeroGrad();
    };
    const parameters = (model: LlamaForCausalLM) =>
      new Map(model.namedParameters().filter(([, p]) => p.requiresGrad));
    const [first, optimizer] = await start(8);
    await step(first, optimizer);
    const path = `${folder}/${name}.safetensors`;
    await saveCheckpoint(path, { parameters: parameters(first), optimizer }, {});
    await step(first, optimizer);

    const [second, again] = await start(9);
    await loadCheckpoint(path, { parameters: parameters(second), optimizer: again });
    await step(second, again);
    for (const [key, parameter] of parameters(first)) {
      assertEquals(await parameters(second).get(key)!.data(), await parameter.data(), key);
    }
  }
  await Deno.remove(folder, { recursive: true });
  await device.close();
  useDevice(null);
});

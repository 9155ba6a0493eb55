/** Adapters over a packed base: against PEFT over bitsandbytes, against the same base as floats, and what cannot be. */

import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { init, manualSeed, noGrad, normal, tensor } from "@graft/ml";
import {
  type CausalLM,
  dequantize,
  generate,
  LlamaForCausalLM,
  loadModel,
  type Module,
  Parameter,
  quantize,
  QuantizedParameter,
  type QuantizeOptions,
} from "@graft/ml/nn";
import { AdamW, loadCheckpoint, saveCheckpoint } from "@graft/ml/optim";
import {
  adapterState,
  addAdapter,
  inject,
  loadAdapter,
  type LoraConfig,
  type LoraLinear,
  merge,
  mergeAndUnload,
  type MergeRounding,
  saveAdapter,
  setActive,
  unmerge,
  withoutAdapters,
  withRowAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { apart, One, packedOf } from "./packed.ts";
import { golden, here, near, shifted } from "../parity/golden.ts";

forEachDevice("qlora: PEFT over bitsandbytes, logits, gradients, merged, files", async (_, t) => {
  for (const name of ["lora", "dora"]) {
    await t.step(name, async () => {
      const model = await loadModel(`${here}qlora`, { quantize: "nf4" }) as CausalLM;
      const folder = `${here}qlora/${name}`;
      await using file = await golden(`qlora/${name}/golden.safetensors`);
      const ids = await file.tensor("input_ids"), labels = await file.tensor("labels");
      const logits = async (): Promise<Float32Array> =>
        await model.logits(model.forward(ids)).data() as Float32Array;
      const base = await logits();
      await loadAdapter(model, folder, { trainable: true });
      near("logits", await logits(), await file.floats("logits"), 1e-4);
      assertEquals(await withoutAdapters(model, logits), base);

      const loss = model.loss({ inputs: ids, targets: shifted(labels) });
      loss.backward();
      near("loss", await loss.data(), await file.floats("loss"), 1e-5);
      const state = adapterState(model);
      const gradients = file.keys.filter((key) => key.startsWith("grad."));
      assertEquals(gradients.length, state.size);
      for (const key of gradients) {
        const { grad } = state.get(key.slice("grad.".length))!;
        near(key, await grad!.data(), await file.floats(key), 1e-3);
      }

      const copy = await Deno.makeTempDir();
      await saveAdapter(model, copy);
      for (const part of ["adapter_config.json", "adapter_model.safetensors"]) {
        assertEquals(
          await Deno.readFile(`${copy}/${part}`),
          await Deno.readFile(`${folder}/${part}`),
        );
      }
      await Deno.remove(copy, { recursive: true });

      const before = await logits();
      const rounded: MergeRounding[] = [];
      await merge(model, { rounded: (layers) => rounded.push(...layers) });
      const merged = await logits();
      near("merged", merged, await file.floats("logits_merged"), 1e-4);
      assert(apart(merged, before) > 0.1, "rounding changes the output");
      assertEquals(rounded.length, 7);
      for (const { path, format, weight, delta } of rounded) {
        assertEquals(format, "nf4");
        const layer = model.namedModules().find(([at]) => at === path)![1] as LoraLinear;
        const added = layer.adapters.get("default")!.delta(layer);
        const sum = layer.weight.add(added), lost = layer.merged!.weight.sub(sum);
        const [a, b, c] = await Promise.all(
          [lost, sum, added].map(async (x) => Math.sqrt(await x.square().sum().item())),
        );
        assert(apart([weight, delta], [a / b, a / c]) < 1e-4, `${path}: ${weight}, ${delta}`);
      }
      assertEquals(await logits.call(unmerge(model)), before);
      const warnings: string[] = [];
      await mergeAndUnload(model, { warn: (text) => warnings.push(text) });
      assertEquals(apart(await logits(), merged), 0);
      assertEquals(packedOf(model).size, 7);
      assertStringIncludes(warnings.join(), "7 merged weights were rounded to nf4 again");
    });
  }
});

/** What every way of adapting is tried on: the same numbers, packed and as floats. */
async function twins(
  base: string,
  options: QuantizeOptions,
): Promise<{ packed: CausalLM; floats: CausalLM }> {
  const packed = await loadModel(`${here}${base}`, { quantize: options }) as CausalLM;
  const floats = await loadModel(`${here}${base}`, { quantize: options }) as CausalLM;
  await dequantize(floats);
  assert(packedOf(packed).size > 0 && packedOf(floats).size === 0);
  return { packed, floats };
}

const METHODS: Readonly<Record<string, LoraConfig>> = {
  "rslora, ranks": { use_rslora: true, rank_pattern: { "q_proj": 2, "c_attn": 2 } },
  "dora, dropout": { use_dora: true, lora_dropout: 0.3 },
  "bias, lora_bias": { bias: "all", lora_bias: true, lora_dropout: 0.3 },
};

forEachDevice("qlora: a packed base adapts as its floats do", async (_, t) => {
  for (const base of ["qlora", "families/gpt2"]) {
    for (const [name, config] of Object.entries(METHODS)) {
      // Of GPT-2, what its transposed weights change.
      if (base === "families/gpt2" && name.startsWith("rslora")) continue;
      await t.step(`${base}, ${name}`, async () => {
        const format = name.startsWith("dora") ? "int8" : "nf4";
        const { packed, floats } = await twins(base, { format });
        const ids = tensor([[1, 5, 7, 2], [3, 2, 9, 4]], { dtype: "i32" });
        const results = [];
        for (const model of [packed, floats]) {
          manualSeed(3);
          inject(model, {
            r: 4,
            target_modules: "all-linear",
            init_lora_weights: false,
            ...config,
          });
          addAdapter(model, { r: 2, target_modules: "all-linear", init_lora_weights: false }, {
            name: "other",
            trainable: false,
          });
          model.train();
          const loss = model.loss({ inputs: ids, targets: ids });
          loss.backward();
          const gradients = await Promise.all(
            model.trainable().map(async (p) => [...await p.grad!.data()]),
          );
          model.eval();
          const logits = () => model.logits(model.forward(ids)).data();
          const rows = await withRowAdapters(model, ["other", "default"], logits);
          const tokens: number[] = [];
          for await (const token of generate(model, [1, 5, 7], { maxTokens: 6, temperature: 0 })) {
            tokens.push(token);
          }
          setActive(model, "default", "other");
          results.push([
            ...gradients,
            [await loss.item()],
            [...rows],
            tokens,
            [...await logits()],
            [...await withoutAdapters(model, logits)],
          ]);
        }
        const [a, b] = results;
        assertEquals(a.length, b.length);
        assert(packed.trainable().every((p) => !(p instanceof QuantizedParameter)));
        a.forEach((values, i) => {
          const scale = Math.max(1, ...b[i].map(Math.abs));
          assert(apart(values, b[i]) < 1e-5 * scale, `${i}: ${apart(values, b[i])} of ${scale}`);
        });
      });
    }
  }
});

/** A small Llama with LoRA beside every layer, packed after its start where `options` say how. */
async function fresh(options: QuantizeOptions | null): Promise<LlamaForCausalLM> {
  manualSeed(5);
  const model = new LlamaForCausalLM({
    vocab_size: 61,
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    initializer_range: 0.2,
  });
  if (options) await quantize(model, options);
  return inject(model, { r: 4, lora_alpha: 16, target_modules: "all-linear" });
}

/** Steps `from` to `to` on a text in which each token follows from its place; the losses. */
async function learn(
  model: LlamaForCausalLM,
  optimizer: AdamW,
  from: number,
  to: number,
): Promise<number[]> {
  const losses: number[] = [];
  for (let step = from; step < to; step++) {
    const ids = Int32Array.from(
      { length: 4 * 17 },
      (_, i) => (i * 7 + 5 * Math.floor(i / 17) + step % 2) % 61,
    );
    const all = tensor(ids, { shape: [4, 17] });
    const loss = model.loss({ inputs: all.slice(1, 0, 16), targets: all.slice(1, 1) });
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    losses.push(await loss.item());
  }
  return losses;
}

const STEPS = 12;
const optimizerOf = (model: Module): AdamW => new AdamW(model.trainable(), { lr: 0.01 });
const trained = (model: Module): Map<string, Parameter> =>
  new Map(model.namedParameters().filter(([, p]) => p.requiresGrad));

forEachDevice(
  "qlora: it learns as the floats do, and goes on where it was broken off",
  async () => {
    const folder = await Deno.makeTempDir();
    const model = await fresh({ format: "nf4" });
    const optimizer = optimizerOf(model);
    const losses = await learn(model, optimizer, 0, 4);
    await model.savePretrained(folder);
    await saveAdapter(model, folder);
    await saveCheckpoint(`${folder}/state`, { parameters: trained(model), optimizer }, null);
    losses.push(...await learn(model, optimizer, 4, STEPS));
    assert(losses[STEPS - 1] < losses[0] - 0.5, `it learns: ${losses}`);

    const again = await LlamaForCausalLM.fromPretrained(folder, { quantize: "nf4" });
    await loadAdapter(again, folder, { trainable: true });
    // The files hold floats, which pack to the same codes.
    const before = packedOf(model), after = packedOf(again);
    assertEquals([...after.keys()], [...before.keys()]);
    for (const [path, { matrix }] of before) {
      const other = after.get(path)!.matrix;
      assertEquals(await other.words.data(), await matrix.words.data());
      assertEquals(await other.scales.data(), await matrix.scales.data());
    }
    const second = optimizerOf(again);
    await loadCheckpoint(`${folder}/state`, { parameters: trained(again), optimizer: second });
    assertEquals(await learn(again.train(), second, 4, STEPS), losses.slice(4));
    await Deno.remove(folder, { recursive: true });

    const cpu = await init({ device: "cpu" });
    const onCpu = async (options: QuantizeOptions | null): Promise<number[]> => {
      const model = await fresh(options);
      return await learn(model, optimizerOf(model), 0, STEPS);
    };
    const same = await onCpu({ format: "nf4" });
    assert(apart(losses, same) < 1e-3, `${losses}, on cpu ${same}`);
    const floats = await onCpu(null), int8 = await onCpu({ format: "int8" });
    assert(apart(int8, floats) < 0.03, `int8 ${int8}, floats ${floats}`);
    assert(apart(losses, floats) < 0.3, `nf4 ${losses}, floats ${floats}`);
    await cpu.close();
  },
);

Deno.test("qlora: memory is that of the codes, while loading too", async () => {
  const folder = await Deno.makeTempDir();
  const config = {
    vocab_size: 16,
    hidden_size: 256,
    intermediate_size: 512,
    num_hidden_layers: 8,
    num_attention_heads: 4,
  };
  let device = await init({ device: "cpu" });
  await new LlamaForCausalLM(config).savePretrained(folder);
  await device.close();
  const linear = 8 * (4 * 256 * 256 + 3 * 256 * 512); // elements
  const other = 4 * (2 * 16 * 256 + 17 * 256); // bytes of embeddings and norms
  for (const [format, bytes] of [["nf4", 1 / 2], ["int8", 1]] as const) {
    device = await init({ device: "cpu" });
    const model = await LlamaForCausalLM.fromPretrained(folder, { quantize: format });
    const held = linear * bytes + 4 * linear / 64;
    assertEquals([...packedOf(model).values()].reduce((sum, p) => sum + p.bytes, 0), held);
    // Beside what is held: the floats of one layer of each size, and as much to pack them.
    const { peakBytes } = device.counters;
    const passing = 2 * 4 * (256 * 512 + 256 * 256);
    assert(peakBytes < held + other + 1.1 * passing, `${format}: ${peakBytes}, holds ${held}`);
    inject(model, { r: 4, target_modules: "all-linear" });
    const optimizer = optimizerOf(model);
    const ids = tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]], { dtype: "i32" });
    model.loss({ inputs: ids, targets: ids }).backward();
    await optimizer.step();
    const { labels, temporaryBytes } = device.lastReport!;
    const products = labels.filter((label) => label.startsWith("quantized_matmul")).length;
    // Forward and backward of 7 layers a block; the first block's input needs no gradient.
    assert(products > 2 * 7 * 7, `${products} products`);
    assert(!labels.some((label) => label.includes("nf4")), "no weight becomes floats elsewhere");
    // Activations, and the panels of one layer at a time.
    assert(temporaryBytes < linear, `${temporaryBytes} bytes`);
    await device.close();
  }
  // One after another: floats go as codes come.
  device = await init({ device: "cpu" });
  const model = await quantize(await LlamaForCausalLM.fromPretrained(folder), { format: "int8" });
  const held = [...packedOf(model).values()].reduce((sum, p) => sum + p.bytes, 0);
  const { bytes, peakBytes } = device.counters;
  assert(bytes < held + linear, `${bytes} bytes are left, ${held} of them held`);
  assert(peakBytes < 5 * linear, `${peakBytes} bytes while packing, ${4 * linear} before`);
  await dequantize(model);
  const floats = 4 * linear + other;
  assert(device.counters.bytes < floats + held / 2, `${device.counters.bytes}, not ${floats}`);
  await device.close();
  await Deno.remove(folder, { recursive: true });
});

Deno.test("qlora: embeddings and heads stay floats, where nobody names them", async () => {
  const device = await init({ device: "cpu" });
  const cases: [string, string, RegExp][] = [
    ["tiny_llama", "lm_head.weight", /./],
    ["families/gpt2", "transformer.wte.weight", /./],
    ["families/bert_sequence", "classifier.weight", /^bert\.(encoder|pooler)\./],
    ["families/roberta_token", "classifier.weight", /^roberta\.encoder\./],
  ];
  for (const [folder, head, packed] of cases) {
    const model = await loadModel(`${here}${folder}`, { quantize: "int8" });
    const names = [...packedOf(model).keys()];
    assert(names.length > 0 && names.every((name) => packed.test(name)), `${folder}: ${names}`);
    const others = model.namedParameters().map(([name]) => name).filter((n) => !names.includes(n));
    assert(others.includes(head), `${folder}: ${others}`);
    const matrices = others.filter((name) =>
      /(proj|dense|query|key|value|c_attn|c_fc)\.weight/.test(name)
    );
    assertEquals(matrices, [], folder);
  }
  await device.close();
});

Deno.test("qlora: what cannot be packed, trained or merged is refused, and nothing changes", async () => {
  const device = await init({ device: "cpu" });
  const model = await loadModel(`${here}qlora`) as CausalLM;
  const bad: [QuantizeOptions, string][] = [
    [{ targets: /nothing/ }, "no layer is named; there is model.layers.0"],
    [{ blockSize: 4 }, "blockSize from 8 on, got 4, the sizes of model.layers.0.self_attn.q_proj"],
  ];
  for (const [options, text] of bad) {
    await assertRejects(() => quantize(model, options), Error, text);
    assertEquals(packedOf(model).size, 0);
  }
  const odd = new One(new Parameter(normal([3, 12])));
  await assertRejects(() => quantize(odd), RangeError, "got [3, 12], the sizes of layer; skip it");
  const broken = new One(new Parameter(normal([3, 16]).div(0)));
  await assertRejects(() => quantize(broken), RangeError, "the weight of layer is not finite");
  const gpt2 = await loadModel(`${here}families/gpt2`) as CausalLM;
  await assertRejects(
    () => quantize(gpt2, { targets: /lm_head/ }),
    Error,
    "lm_head shares its weight",
  );

  await quantize(model, { format: "int8", skip: /down_proj/ });
  assertEquals(packedOf(model).size, 6);
  await assertRejects(() => quantize(model), Error, "q_proj is held in int8 already");
  const key = "model.layers.0.self_attn.q_proj.weight";
  model.freeze(/embed|norm/);
  const trained = model.trainable();
  assertThrows(() => model.unfreeze(), TypeError, `${key} is held in int8 and cannot be trained`);
  assertEquals(model.trainable(), trained);
  const packed = packedOf(model).get(key)!;
  const before = await packed.data();
  const values = new Float32Array(64 * 64).fill(1);
  values[7] = NaN;
  await assertRejects(() => packed.write(values), RangeError, `element 7 of ${key} is NaN`);
  assertEquals(await packed.data(), before);

  inject(model, { r: 2, target_modules: ["q_proj"] });
  const [a, b] = model.trainable();
  b.assign(noGrad(() => b.add(1)));
  a.assign(noGrad(() => a.mul(0).add(Infinity)));
  for (const way of [merge, mergeAndUnload]) {
    await assertRejects(
      () => way(model),
      Error,
      "the merged weight of model.layers.0.self_attn.q_proj",
    );
    assertEquals(await packed.data(), before);
  }
  await dequantize(model);
  assertEquals(packedOf(model).size, 0);
  assertEquals(await model.stateDict().get(key)!.data(), before);
  model.unfreeze();
  await device.close();
});

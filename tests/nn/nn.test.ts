/** Modules: what is found, frozen, counted, saved and loaded. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  type DType,
  init,
  openSafetensors,
  tensor,
  useDevice,
  Variable,
  writeSafetensors,
  zeros,
} from "@graft/ml";
import { Embedding, Linear, LlamaForCausalLM, Module, RMSNorm } from "@graft/ml/nn";
import { countParameters } from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";

const tiny = {
  vocab_size: 11,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 2,
  num_attention_heads: 2,
};

class Net extends Module {
  parts: Module[] = [new Linear(2, 3), new RMSNorm(3)];
  named: Map<string, Module> = new Map([["head", new Linear(3, 1, { bias: false })]]);
  mean: Variable = new Variable(zeros([3]));
  readonly #table: Variable = new Variable(zeros([4]));
  table(): Variable {
    return this.#table;
  }
}

forEachDevice("nn: parameters are found by walking the fields", async () => {
  const net = new Net();
  const names = ["parts.0.weight", "parts.0.bias", "parts.1.weight", "named.head.weight"];
  assertEquals(net.namedParameters().map(([name]) => name), names);
  assertEquals([...net.stateDict().keys()].sort(), [...names, "mean"].sort());
  assertEquals(net.freeze().trainable().length, 0);
  assertEquals(net.unfreeze(/^parts\.0/).trainable().length, 2);
  assertEquals(net.freeze(/bias$/g).trainable().length, 1);
  assertEquals(countParameters(net), { trainable: 6, total: 15 });
  assert(net.eval().modules().every((m) => !m.training));
  await Promise.resolve();
});

forEachDevice("nn: a state goes through a file, 16-bit floats are widened", async () => {
  const folder = await Deno.makeTempDir();
  const from = new Net(), to = new Net();
  await from.save(`${folder}/net.safetensors`);
  await to.load(`${folder}/net.safetensors`);
  for (const [key, variable] of from.stateDict()) {
    assertEquals(await to.stateDict().get(key)!.data(), await variable.data());
  }

  const embedding = new Embedding(2, 2);
  const half = new Uint8Array(Float16Array.of(1, -2, 0.5, 65504).buffer);
  const brain = new Uint8Array(Uint16Array.of(0x3f80, 0xc000, 0x3f00, 0x7f7f).buffer);
  for (const [dtype, data] of [["F16", half], ["BF16", brain]] as const) {
    await writeSafetensors(`${folder}/e.safetensors`, [["weight", { dtype, shape: [2, 2], data }]]);
    await embedding.load(`${folder}/e.safetensors`);
    assertEquals([...await embedding.weight.data()].slice(0, 3), [1, -2, 0.5]);
  }
  await Deno.remove(folder, { recursive: true });
});

forEachDevice(
  "nn: a tensor of several blocks is converted to the dtype it is held in",
  async () => {
    const path = await Deno.makeTempFile();
    const n = (1 << 21) + 5; // beyond 4 MiB in every dtype
    const values = Float32Array.from({ length: n }, (_, i) => i % 251 - 125); // exact in 16 bits
    const bits = new Uint32Array(values.buffer);
    const files = {
      F32: values,
      F16: Float16Array.from(values),
      BF16: Uint16Array.from(bits, (word) => word >>> 16),
      F64: Float64Array.from(values),
      I32: Int32Array.from(values),
    };
    const into = { f32: ["F32", "F16", "BF16", "F64", "I32"], f16: ["F16", "BF16"], i32: ["I32"] };
    for (const [dtype, names] of Object.entries({ ...into, bf16: ["BF16", "F32"] })) {
      for (const name of names as (keyof typeof files)[]) {
        const data = new Uint8Array(files[name].buffer);
        await writeSafetensors(path, [["mean", { dtype: name, shape: [n], data }]]);
        const net = new Net();
        net.mean = Variable.empty([n], dtype as DType);
        await net.load(path, { strict: false });
        const wrong = (await net.mean.data()).findIndex((x, i) => x !== values[i]);
        assertEquals(wrong, -1, `${name} as ${dtype}`);
        net.mean.dispose();
      }
    }
    const net = new Net();
    net.mean = Variable.empty([n], "i32");
    await writeSafetensors(path, [["mean", {
      dtype: "F32",
      shape: [n],
      data: new Uint8Array(values.buffer),
    }]]);
    await assertRejects(() => net.load(path, { strict: false }), TypeError, "needs dtype i32");
    await Deno.remove(path);
  },
);

forEachDevice("nn: loading lists every key that does not fit, and changes nothing", async () => {
  const net = new Net();
  const before = await net.named.get("head")!.parameters()[0].data();
  const state = new Map<string, Variable>(net.stateDict());
  state.delete("parts.0.bias");
  state.delete("mean");
  state.set("parts.1.weight", new Variable(zeros([4])));
  state.set("extra", new Variable(zeros([1])));
  state.set("named.head.weight", new Variable(zeros([1, 3])));
  const error = await assertRejects(() => net.loadStateDict(state), Error);
  for (
    const part of [
      "2 keys are missing:\n  mean\n  parts.0.bias",
      "1 key is unexpected:\n  extra",
      "parts.1.weight (needs [3], has [4])",
    ]
  ) assert(error.message.includes(part), error.message);
  assertEquals(await net.named.get("head")!.parameters()[0].data(), before);

  state.set("parts.1.weight", new Variable(tensor([1, 2, 3])));
  await net.loadStateDict(state, { strict: false });
  assertEquals([...await net.parts[1].parameters()[0].data()], [1, 2, 3]);
});

forEachDevice("nn: tied weights are one parameter, saved once", async () => {
  const folder = await Deno.makeTempDir();
  const model = new LlamaForCausalLM({ ...tiny, tie_word_embeddings: true });
  assert(model.lm_head.weight === model.model.embed_tokens.weight);
  await model.save(`${folder}/model.safetensors`);
  {
    await using file = await openSafetensors(`${folder}/model.safetensors`);
    assert(file.names.includes("model.embed_tokens.weight"));
    assert(!file.names.includes("lm_head.weight"));
  }
  const other = new LlamaForCausalLM({ ...tiny, tie_word_embeddings: true });
  await other.load(`${folder}/model.safetensors`);
  assertEquals(await other.lm_head.weight.data(), await model.lm_head.weight.data());
  // A file may hold the weight under either name.
  const state = new Map(model.stateDict());
  state.set("lm_head.weight", state.get("model.embed_tokens.weight")!);
  state.delete("model.embed_tokens.weight");
  await other.loadStateDict(state);
  await Deno.remove(folder, { recursive: true });
});

Deno.test("nn: a 175-billion-parameter model is counted without memory", async () => {
  const device = await init({ device: "meta" });
  try {
    const model = new LlamaForCausalLM({
      vocab_size: 50257,
      hidden_size: 12288,
      intermediate_size: 32768,
      num_hidden_layers: 96,
      num_attention_heads: 96,
    });
    const block = 4 * 12288 ** 2 + 3 * 12288 * 32768 + 2 * 12288;
    const total = 96 * block + 2 * 50257 * 12288 + 12288;
    assertEquals(countParameters(model), { trainable: total, total });
    assert(total > 174e9);
    const ids = zeros([1, 4], { dtype: "i32" });
    assertEquals(model.logits(model.forward(ids)).shape, [1, 4, 50257]);
    await assertRejects(() => model.lm_head.weight.data(), Error, "meta");
  } finally {
    await device.close();
    useDevice(null);
  }
});

Deno.test("nn: a configuration that cannot be is refused by the key at fault", async () => {
  const device = await init({ device: "meta" });
  const cases: [Record<string, unknown>, string][] = [
    [{ model_type: "bert" }, "model_type"],
    [{ hidden_act: "gelu" }, "hidden_act"],
    [{ num_hidden_layers: 0 }, "num_hidden_layers"],
    [{ num_attention_heads: 3 }, "head_dim"],
    [{ num_attention_heads: 4, head_dim: 4, num_key_value_heads: 3 }, "num_key_value_heads"],
    [{ rope_scaling: { type: "yarn" } }, "rope_scaling"],
    [{ rope_scaling: { rope_type: "llama3", factor: 8 } }, "low_freq_factor"],
  ];
  for (const [change, key] of cases) {
    assertThrows(() => new LlamaForCausalLM({ ...tiny, ...change }), Error, key);
  }
  await device.close();
  useDevice(null);
});

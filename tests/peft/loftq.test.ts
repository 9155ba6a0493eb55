/** LoftQ: a packed base and an adapter that are fitted to a weight together. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { init, tensor } from "@graft/ml";
import { type CausalLM, loadModel, Parameter, QuantizedParameter } from "@graft/ml/nn";
import {
  addAdapter,
  inject,
  injectFromBase,
  loadAdapter,
  type LoraConfig,
  saveAdapter,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { apart, One, packedOf } from "./packed.ts";
import { golden, here, near } from "../parity/golden.ts";

/** ‖x‖ */
const length = (x: ArrayLike<number>): number =>
  Math.sqrt(Array.from(x).reduce((sum, v) => sum + v * v, 0));

forEachDevice("loftq: it is PEFT's, and nearer to the weight than packing alone", async () => {
  await using file = await golden("quantized.safetensors");
  const w = await file.floats("loftq.w");
  const rest = (...parts: ArrayLike<number>[]): number =>
    length(w.map((x, i) => x - parts.reduce((sum, part) => sum + part[i], 0)));
  for (const bits of [4, 8]) {
    let before = Infinity;
    for (const iterations of [1, 4]) {
      const model = new One(new Parameter(await file.tensor("loftq.w")));
      const plain = QuantizedParameter.from(model.layer.weight, {
        format: bits === 4 ? "nf4" : "int8",
      });
      const alone = rest(await plain.data());
      await injectFromBase(model, {
        r: 6,
        lora_alpha: 15, // PEFT's start is right for a scale of 1 alone
        target_modules: ["layer"],
        init_lora_weights: "loftq",
        loftq_config: { loftq_bits: bits, loftq_iter: iterations },
      });
      const { weight } = model.layer;
      assert(weight instanceof QuantizedParameter);
      const [a, b] = model.trainable();
      const q = await weight.data(), ba = await b.matmul(a).mul(15 / 6).data();
      const left = rest(q, ba);
      assert(left < 0.8 * alone, `${left}, packing alone ${alone}`);
      assert(left < before, `more iterations leave less: ${left}, was ${before}`);
      before = left;
      const key = `loftq.${bits}.${iterations}`;
      const [peftQ, peftBA] = [await file.floats(`${key}.q`), await file.floats(`${key}.ba`)];
      if (bits === 4 && iterations === 1) {
        near("Q", q, peftQ, 1e-6);
        near("BA", ba, peftBA, 1e-4);
      }
      // A scale for each block, not for each row, leaves less.
      const theirs = rest(peftQ, peftBA);
      if (bits === 4) assert(Math.abs(left - theirs) < 0.01 * theirs, `${left}, PEFT's ${theirs}`);
      else assert(left < theirs, `${left}, PEFT's ${theirs}`);
    }
  }
});

Deno.test("loftq: over a model; what it changes, and what it cannot", async () => {
  const device = await init({ device: "cpu" });
  const load = (options = {}) => loadModel(`${here}qlora`, options) as Promise<CausalLM>;
  const ids = tensor([[1, 5, 7, 2]], { dtype: "i32" });
  const logits = (model: CausalLM) => model.logits(model.forward(ids)).data();
  const exact = await logits(await load());
  const alone = apart(await logits(await load({ quantize: "nf4" })), exact);
  let plain: Float32Array | null = null;
  for (const use_dora of [false, true]) {
    const model = await load();
    await injectFromBase(model, {
      r: 16,
      target_modules: "all-linear",
      init_lora_weights: "loftq",
      loftq_config: { loftq_iter: 5 },
      use_dora,
    });
    assertEquals(packedOf(model).size, 7);
    const now = await logits(model);
    assert(apart(now, exact) < 0.75 * alone, `${apart(now, exact)}, packing alone ${alone}`);
    plain ??= now as Float32Array;
    assert(apart(now, plain) < 1e-5, "DoRA's magnitudes start where they change nothing");
    // Base and adapter, each in its file, are the same again.
    const folder = await Deno.makeTempDir();
    await model.savePretrained(folder);
    await saveAdapter(model, folder);
    const again = await loadModel(folder, { quantize: "nf4" }) as CausalLM;
    await loadAdapter(again, folder);
    assertEquals(await logits(again), now);
    await Deno.remove(folder, { recursive: true });
  }
  const config = { init_lora_weights: "loftq", target_modules: ["q_proj"] };
  const turned = async (options = {}) =>
    await loadModel(`${here}families/gpt2`, options) as CausalLM;
  const gpt2 = await turned(), before = await logits(gpt2);
  const rest = apart(await logits(await turned({ quantize: "int8" })), before);
  await injectFromBase(gpt2, {
    ...config,
    r: 16,
    target_modules: "all-linear",
    loftq_config: { loftq_bits: 8, loftq_iter: 2 },
  });
  const left = apart(await logits(gpt2), before);
  assert(left < 0.75 * rest, `${left}, packing alone ${rest}`);
  const refused = async (model: CausalLM, change: LoraConfig, text: string): Promise<void> => {
    const before = await logits(model);
    await assertRejects(() => injectFromBase(model, { ...config, ...change }), Error, text);
    assertEquals(await logits(model), before);
  };
  await refused(await load({ quantize: "int8" }), {}, "q_proj is packed already");
  await refused(
    await load(),
    { target_modules: ["q_proj", "embed_tokens"] },
    "embed_tokens is none",
  );
  await refused(await load(), { r: 64, rank_pattern: { q_proj: 65 } }, "rank of at most");
  const adapted = inject(await load(), { target_modules: ["q_proj"] }, { name: "first" });
  await assertRejects(
    () => injectFromBase(adapted, config, { name: "second" }),
    Error,
    "other adapters of model.layers.0.self_attn.q_proj are made for: first",
  );
  assertThrows(() => addAdapter(adapted, config), Error, "call await injectFromBase()");
  await device.close();
});

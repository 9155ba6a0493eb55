/** EVA: where A starts is where the inputs vary most, and so are the ranks. */

import { assert, assertEquals, assertRejects } from "@std/assert";
import { init, manualSeed, noGrad, type Tensor, tensor } from "@graft/ml";
import { BertForTokenClassification, LlamaForCausalLM, Module, quantize } from "@graft/ml/nn";
import {
  adapterStatus,
  inject,
  injectFromBase,
  loadAdapter,
  type LoraConfig,
  LoraLinear,
  saveAdapter,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { apart } from "./packed.ts";

const SIZE = 16, TOKENS = 40;
const ids = (): Tensor =>
  tensor(Int32Array.from({ length: 2 * TOKENS }, (_, i) => (i * i + 3 * i) % 23), {
    shape: [2, TOKENS],
  });
/** The next tokens; the second half of each row has no label. */
const targets = (): Tensor => ids().slice(1, 1, TOKENS / 2).pad(1, 0, TOKENS / 2 + 1, -100);
const batches = (): object[] =>
  [0, 1].map((b) => ({ inputs: ids().slice(0, b, b + 1), targets: targets().slice(0, b, b + 1) }));

function fresh(): LlamaForCausalLM {
  manualSeed(7);
  return new LlamaForCausalLM({
    vocab_size: 23,
    hidden_size: SIZE,
    intermediate_size: 24,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    initializer_range: 0.3,
  });
}

const logits = (model: LlamaForCausalLM) =>
  noGrad(() => model.logits(model.forward(ids()))).data() as Promise<Float32Array>;

/** Layers with adapters by path, each with its pair. */
function pairsOf(model: Module) {
  return new Map(
    model.namedModules().flatMap(([path, module]) =>
      module instanceof LoraLinear ? [[path, module.adapters.get("default")!] as const] : []
    ),
  );
}

/** The scatter of centred rows. */
function scatterOf(rows: number[][]): number[][] {
  const mean = rows[0].map((_, c) => rows.reduce((sum, row) => sum + row[c], 0) / rows.length);
  const centred = rows.map((row) => row.map((x, c) => x - mean[c]));
  return mean.map((_, i) => mean.map((_, j) => centred.reduce((sum, x) => sum + x[i] * x[j], 0)));
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number =>
  Array.from(a).reduce((sum, x, i) => sum + x * b[i], 0);

forEachDevice("eva: A is the directions in which a layer's inputs vary most", async (device) => {
  for (const whiten of device.name === "cpu" ? [false, true] : [true]) {
    const model = fresh();
    // What the first layer's queries are made of, at the positions that count.
    const { input_layernorm } = model.model.layers[0];
    const inputs = noGrad(() => input_layernorm.forward(model.model.embed_tokens.forward(ids())));
    const values = await inputs.slice(1, 0, TOKENS / 2).data();
    const rows = Array.from(
      { length: TOKENS },
      (_, t) => [...values.subarray(t * SIZE, (t + 1) * SIZE)],
    );
    const scatter = scatterOf(rows), base = await logits(model);
    await injectFromBase(model, {
      r: 4,
      target_modules: ["q_proj"],
      layers_to_transform: [0],
      init_lora_weights: "eva",
      eva_config: { rho: 1, whiten },
    }, { batches: batches() });
    assertEquals(apart(await logits(model), base), 0, "B is zero");
    const a = await [...pairsOf(model).values()][0].a.data();
    assertEquals(a.length, 4 * SIZE);
    const variances: number[] = [];
    for (let k = 0; k < 4; k++) {
      const row = [...a.subarray(k * SIZE, (k + 1) * SIZE)], length = Math.sqrt(dot(row, row));
      const unit = row.map((x) => x / length);
      const through = scatter.map((line) => dot(line, unit)), variance = dot(through, unit);
      // An eigenvector, of a length that is as it was asked for.
      assert(apart(through, unit.map((x) => x * variance)) < 1e-3 * variance, `${k}`);
      const want = whiten ? 1 / Math.sqrt(Math.sqrt(variance)) : 1;
      assert(Math.abs(length - want) < 1e-3 * want, `${length}, not ${want}`);
      variances.push(variance);
      // Taken away, so that what is left shows whether a larger one was missed.
      scatter.forEach((line, i) => line.forEach((_, j) => line[j] -= variance * unit[i] * unit[j]));
    }
    assertEquals(variances.toSorted((x, y) => y - x), variances);
    let rest: number[] = Array.from({ length: SIZE }, (_, i) => i === 0 ? 1 : 0.1), largest = 0;
    for (let i = 0; i < 300; i++) {
      const next = scatter.map((line) => dot(line, rest));
      largest = Math.sqrt(dot(next, next));
      rest = next.map((x) => x / largest);
    }
    assert(largest < variances[3] * 1.001, `${largest} is left, the smallest is ${variances[3]}`);
  }
});

Deno.test("eva: ranks go where inputs vary, their sum stays and α goes with them; in files", async () => {
  const device = await init({ device: "cpu" });
  const folder = await Deno.makeTempDir();
  for (const use_rslora of [false, true]) {
    // Another adapter, dropout and modes have no part in it, and stay; a base may be packed.
    const base = async (): Promise<LlamaForCausalLM> =>
      use_rslora ? await quantize(fresh(), { format: "int8" }) : fresh();
    const model = inject(await base(), { target_modules: ["q_proj"], init_lora_weights: false }, {
      name: "other",
    });
    model.train();
    const config: LoraConfig = {
      r: 4,
      lora_alpha: 6,
      use_rslora,
      lora_dropout: 0.5,
      target_modules: ["q_proj", "v_proj", "down_proj", "lm_head"],
      rank_pattern: { lm_head: 2 },
      init_lora_weights: "eva",
    };
    await injectFromBase(model, config, { batches: batches() });
    assertEquals(adapterStatus(model).attached, ["other", "default"]);
    assert(model.modules().every((module) => module.training));
    const pairs = pairsOf(model);
    const ranks = [...pairs].flatMap(([path, pair]) => pair ? [[path, pair.a.shape[0]]] : []);
    assertEquals(ranks.reduce((sum, [, r]) => sum + (r as number), 0), 2 * 3 * 4 + 2);
    for (const [path, r] of ranks) assert(r as number <= (path === "lm_head" ? 4 : 8), `${ranks}`);
    assert(new Set(ranks.map(([, r]) => r)).size > 2, `${ranks}`);
    for (const [path, pair] of pairs) {
      const r = path === "lm_head" ? 2 : 4;
      const alpha = 6 * pair.a.shape[0] / r; // PEFT's, with rsLoRA too
      const scale = alpha / (use_rslora ? Math.sqrt(pair.a.shape[0]) : pair.a.shape[0]);
      assert(Math.abs(pair.scale - scale) < 1e-12, path);
    }
    // Queries and values of a layer see the same.
    const a = await Promise.all(
      ["q_proj", "v_proj"].map((name) => pairs.get(`model.layers.0.self_attn.${name}`)!.a.data()),
    );
    const shared = Math.min(a[0].length, a[1].length);
    assertEquals(a[0].subarray(0, shared), a[1].subarray(0, shared));

    model.eval();
    for (const pair of pairs.values()) pair.b.assign(pair.b.add(0.1));
    const want = await logits(model);
    await saveAdapter(model, folder);
    const again = (await base()).eval() as LlamaForCausalLM;
    await loadAdapter(again, folder);
    assert(apart(await logits(again), want) < 1e-6);
  }
  await Deno.remove(folder, { recursive: true });
  await device.close();
});

Deno.test("eva: an encoder's padding and tokens without a label do not count", async () => {
  const device = await init({ device: "cpu" });
  const started = async (batch: object): Promise<Float32Array> => {
    manualSeed(7);
    const model = new BertForTokenClassification({
      vocab_size: 23,
      hidden_size: SIZE,
      intermediate_size: 24,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    });
    await injectFromBase(model, { r: 2, target_modules: ["query"], init_lora_weights: "eva" }, {
      batches: [batch],
    });
    return await [...pairsOf(model).values()][0].a.data() as Float32Array;
  };
  const half = (values: Tensor, rest: number): Tensor =>
    values.slice(1, 0, TOKENS / 2).pad(1, 0, TOKENS / 2, rest);
  const inputs = ids(), labels = inputs.mul(0), attentionMask = labels.add(1);
  const want = await started({ inputs: ids().slice(1, 0, 20), labels: labels.slice(1, 0, 20) });
  const cases: [object, boolean][] = [
    [{ inputs, labels: half(labels, -100) }, true],
    [{ inputs, labels, attentionMask: half(attentionMask, 0) }, true],
    [{ inputs, labels, attentionMask }, false],
  ];
  for (const [batch, isSame] of cases) {
    assertEquals(apart(await started(batch), want) < 1e-3, isSame, Object.keys(batch).join());
  }
  await device.close();
});

Deno.test("eva: what cannot be is refused, and changes nothing", async () => {
  const device = await init({ device: "cpu" });
  const model = fresh(), base = await logits(model);
  const eva: LoraConfig = { r: 4, target_modules: ["q_proj"], init_lora_weights: "eva" };
  const few = [{ inputs: ids().slice(1, 0, 4), targets: ids().slice(1, 1, 5) }];
  const same = tensor(new Int32Array(TOKENS), { shape: [1, TOKENS] });
  const first: LoraConfig = { ...eva, layers_to_transform: [0] };
  const bad: [LoraConfig, object[] | undefined, string][] = [
    [eva, undefined, "belong together, got no batches"],
    [{ target_modules: ["q_proj"] }, batches(), "got batches for true"],
    [eva, [], "needs batches in which model.layers.0.self_attn.q_proj has a part"],
    [eva, few, "needs more than 8 tokens that count to find as many directions, got 8 at model.la"],
    [
      first,
      [{ inputs: same, targets: same }],
      "the variance at model.layers.0.self_attn.q_proj is",
    ],
    [{ ...eva, target_modules: ["embed_tokens"] }, batches(), "embed_tokens is none"],
  ];
  for (const [config, given, part] of bad) {
    await assertRejects(() => injectFromBase(model, config, { batches: given }), Error, part);
    assertEquals(adapterStatus(model).attached, []);
    assert(!model.modules().some((module) => Object.hasOwn(module, "forward")));
    assertEquals(apart(await logits(model), base), 0);
  }
  class Silent extends Module {
    inner: LlamaForCausalLM = model;
  }
  await assertRejects(
    () => injectFromBase(new Silent(), eva, { batches: batches() }),
    TypeError,
    "runs the model by its loss, and Silent has none",
  );
  await device.close();
});

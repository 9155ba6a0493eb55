/**
 * What PEFT's own tests ask of a method, of every family and every method, on every backend. The
 * tolerances are theirs or tighter; see `cases.ts` for the table.
 */

import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type Device,
  init,
  manualSeed,
  noGrad,
  openSafetensors,
  tensor,
  useDevice,
  type Variable,
} from "@graft/ml";
import { CausalLM, generate } from "@graft/ml/nn";
import { AdamW, SGD } from "@graft/ml/optim";
import {
  adapterState,
  adapterStatus,
  countParameters,
  deleteAdapter,
  loadAdapter,
  merge,
  mergeAndUnload,
  saveAdapter,
  setActive,
  unload,
  unmerge,
  withAdapters,
  withoutAdapters,
  withRowAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import {
  type AnyModel,
  FAMILIES,
  type Family,
  logitsOf,
  lossOf,
  type Method,
  METHODS,
  ROWS,
} from "./cases.ts";

/** A case of the table while it is held against the list. */
interface Case {
  readonly device: Device;
  readonly family: Family;
  readonly method: Method;
  readonly model: AnyModel;
  /** Logits before anything was adapted. */
  readonly base: Float32Array;
}

const square = (device: Device): boolean => device.name !== "cpu";
const outputs = async (model: AnyModel): Promise<Float32Array> =>
  await noGrad(() => logitsOf(model)).data() as Float32Array;

function apart(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assertEquals(a.length, b.length);
  return Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
}

/** Parameters of the model's adapters, whatever holds them. */
function adapterParameters(model: AnyModel): Set<Variable> {
  const base = new Set(model.stateDict().values());
  return new Set(model.parameters().filter((p) => !base.has(p)));
}

async function valuesOf(model: AnyModel): Promise<Map<string, ArrayLike<number>>> {
  const values = new Map<string, ArrayLike<number>>();
  for (const [name, p] of model.namedParameters()) values.set(name, await p.data());
  return values;
}

/** Three steps move all of the adapter and nothing else; what is frozen has neither gradient nor state. */
async function trains({ model, family }: Case): Promise<void> {
  const own = adapterParameters(model);
  assertEquals(new Set<Variable>(model.trainable()), own);
  const before = await valuesOf(model);
  const optimizer = new SGD(model.trainable(), { lr: 0.5, momentum: 0.1 });
  for (let step = 0; step < 3; step++) {
    lossOf(model, family.task).backward();
    for (const [name, p] of model.namedParameters()) {
      assertEquals(p.grad !== null, own.has(p), name);
    }
    await optimizer.step();
    optimizer.zeroGrad();
  }
  assertEquals((await optimizer.state()).tensors.size, own.size);
  for (const [name, p] of model.namedParameters()) {
    assertEquals(apart(await p.data(), before.get(name)!) > 0, own.has(p), name);
  }
}

/** Off is the base to the bit, and what was on is on again. */
async function switchesOff({ model, base }: Case, adapted: Float32Array): Promise<void> {
  assert(apart(adapted, base) > 1e-3, "an adapter that does something");
  assertEquals(apart(await withoutAdapters(model, () => outputs(model)), base), 0);
  await assertRejects(() => withoutAdapters(model, () => Promise.reject(new Error("inside"))));
  assertEquals(apart(await outputs(model), adapted), 0);
}

/** A file holds the adapter and nothing of the base, and gives it back under another seed. */
async function savesAndLoads(
  { device, model, family, method }: Case,
  adapted: Float32Array,
): Promise<AnyModel> {
  const folder = await Deno.makeTempDir();
  await saveAdapter(model, folder);
  await using file = await openSafetensors(`${folder}/adapter_model.safetensors`);
  const keys = new Set(adapterState(model).keys());
  if (method.isPrompt) keys.add("prompt_embeddings");
  const tables = file.names.filter((key) => !keys.has(key));
  // As PEFT does: of an adapted table the whole of it, which readers compare with theirs.
  assert(tables.every((key) => key.endsWith("embed_tokens.base_layer.weight")), `${tables}`);
  assertEquals(file.names.length, keys.size + tables.length);

  const other = family.fresh(square(device));
  manualSeed(99);
  await loadAdapter(other, folder);
  assert(apart(await outputs(other), adapted) < 1e-5, "saved and loaded");
  await Deno.remove(folder, { recursive: true });
  return other;
}

/** Merged, merged again, unmerged, unloaded: the same; of a prompt nothing can be merged. */
async function merges(
  { model, base, method }: Case,
  other: AnyModel,
  adapted: Float32Array,
): Promise<void> {
  if (method.isPrompt) {
    await assertRejects(() => mergeAndUnload(other), Error, "which no weight can hold");
    return;
  }
  await merge(model);
  assert(apart(await outputs(model), adapted) < 1e-4, "merged");
  assertEquals(apart(await withoutAdapters(model, () => outputs(model)), base), 0);
  const warnings: string[] = [];
  await merge(model, { warn: (text) => warnings.push(text) });
  assertEquals(warnings.length, 1);
  assert(apart(await outputs(model), adapted) < 1e-4, "merged again");
  unmerge(model);
  assertEquals(apart(await outputs(model), adapted), 0);
  await mergeAndUnload(other);
  assertEquals(adapterStatus(other).attached, []);
  assert(apart(await outputs(other), adapted) < 1e-4, "merged and unloaded");
}

/** A second adapter beside the first: each by itself, rows of a batch apart, the second taken away. */
async function standsBeside(
  { model, base, family, method }: Case,
  adapted: Float32Array,
): Promise<void> {
  await method.inject(model, family, "second");
  for (const p of adapterState(model, "second").values()) p.assign(p.add(0.05));
  if (method.isPrompt) { for (const p of model.trainable()) p.assign(p.add(0.05)); }
  assertEquals(adapterStatus(model).active, ["second"]);
  const second = await outputs(model);
  assert(apart(second, adapted) > 1e-4);
  setActive(model, "default");
  assertEquals(apart(await outputs(model), adapted), 0);
  if (!method.isPrompt) {
    const each: Record<string, Float32Array> = { __base__: base, default: adapted, second };
    const rows = ["second", "__base__", "default", "second"]; // in an order that is not its inverse
    const mixed = await withRowAdapters(model, rows, () => outputs(model));
    const size = mixed.length / ROWS.length;
    rows.forEach((name, i) => {
      const part = (x: Float32Array): Float32Array => x.subarray(i * size, (i + 1) * size);
      assert(apart(part(mixed), part(each[name])) < 1e-4, `row ${i}: ${name}`);
    });
  }
  assertEquals(apart(await withAdapters(model, ["second"], () => outputs(model)), second), 0);
  deleteAdapter(model, "second");
  assertEquals(apart(await outputs(model), adapted), 0);
}

/** What is generated with a cache is what each whole text would go on with. */
async function generates({ model }: Case): Promise<void> {
  if (!(model instanceof CausalLM)) return;
  const text = [...ROWS[0]];
  for await (const id of generate(model, ROWS[0], { maxTokens: 3, stopTokens: [] })) {
    const whole = tensor([text], { dtype: "i32" });
    const next = noGrad(() => model.logits(model.forward(whole).select(1, text.length - 1)));
    const logits = await next.data() as Float32Array;
    assertEquals(id, logits.indexOf(Math.max(...logits)));
    text.push(id);
  }
  assertEquals(text.length, ROWS[0].length + 3);
}

async function holds(
  device: Device,
  family: Family,
  method: Method,
  { whole, cached }: { readonly whole: boolean; readonly cached: boolean },
): Promise<void> {
  const model = family.fresh(square(device));
  const base = await outputs(model);
  const keys = [...model.stateDict().keys()];
  await method.inject(model, family, "default");
  assertEquals([...model.stateDict().keys()], keys, "a base checkpoint loads unchanged");
  if (!method.isPrompt) assert(apart(await outputs(model), base) < 1e-6, "the start is nothing");
  const it: Case = { device, family, method, model, base };
  await trains(it);
  const adapted = await outputs(model);
  await switchesOff(it, adapted);
  const other = await savesAndLoads(it, adapted);
  if (whole) {
    await merges(it, other, adapted);
    await standsBeside(it, adapted);
  }
  if (cached) await generates(it);
  assertEquals(apart(await outputs(unload(model)), base), 0, "unloaded");
}

/**
 * On a software GPU, which compiles each kernel for a tenth of a second, a decoder and an encoder have
 * all methods and the whole list, and the other families the three ways into a model. With
 * GRAFT_ALL_CASES=1 it gets what the cpu gets.
 */
const ON_GPU = {
  families: ["llama", "bert_sequence"],
  methods: ["lora", "prompt tuning", "prefix"],
};
const ALL = Deno.env.get("GRAFT_ALL_CASES") === "1";

forEachDevice("peft acceptance: every family and method", async (device, t) => {
  for (const [name, family] of Object.entries(FAMILIES)) {
    for (const [how, method] of Object.entries(METHODS)) {
      const whole = device.name === "cpu" || ALL || ON_GPU.families.includes(name);
      if (!whole && !ON_GPU.methods.includes(how)) continue;
      // Generating compiles for every length: one way of it will do.
      const cached = device.name === "cpu" || ALL || `${name}, ${how}` === "llama, prefix";
      await t.step(`${name}, ${how}`, () => holds(device, family, method, { whole, cached }));
    }
  }
});

/** The plan of a training step, and how many numbers are trained and kept by the optimizer. */
async function costs(device: Device, family: Family, method: Method | null) {
  const model = family.fresh(false);
  await method?.inject(model, family, "default");
  const optimizer = new AdamW(model.trainable());
  for (let step = 0; step < 2; step++) {
    lossOf(model, family.task).backward();
    await optimizer.step();
    optimizer.zeroGrad();
  }
  const report = device.lastReport!;
  const { tensors } = await optimizer.state();
  const kept = tensors.values().reduce((sum, { data }) => sum + data.length, 0);
  return { report, kept, trained: countParameters(model).trainable };
}

Deno.test("peft acceptance: what is frozen costs no gradient, no state and no saved input", async () => {
  const device = await init({ device: "cpu" });
  for (const [name, family] of Object.entries(FAMILIES)) {
    const full = await costs(device, family, null);
    assertEquals(full.kept, 2 * full.trained);
    for (const how of ["lora", "prefix"]) {
      const it = await costs(device, family, METHODS[how]);
      // AdamW keeps two numbers a trained one.
      assertEquals(it.kept, 2 * it.trained, `${name}, ${how}`);
      assert(it.trained < full.trained / 4, `${name}, ${how}`);
      // Inputs that only a frozen weight's gradient would read are not held until backward.
      assert(it.report.temporaryBytes < full.report.temporaryBytes, `${name}, ${how}`);
      assert(it.report.unsharedBytes < full.report.unsharedBytes, `${name}, ${how}`);
    }
    // Nothing is trained before the blocks, so nothing is computed on the way back to there.
    const prefix = await costs(device, family, METHODS.prefix);
    assert(prefix.report.kernels < full.report.kernels, name);
  }
  await device.close();
  useDevice(null);
});

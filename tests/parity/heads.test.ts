/** Soft prompts that are trained with a head, against PEFT: see peft_heads.py. */

import { assertEquals } from "@std/assert";
import { type Device, noGrad, type Tensor, type Variable } from "@graft/ml";
import {
  CausalLM,
  DecoderClassifier,
  type EncoderHead,
  type EncoderOptions,
  loadModel,
  type SequenceHead,
  type TokenHead,
} from "@graft/ml/nn";
import {
  adapterState,
  injectPrompt,
  loadAdapter,
  type PromptConfig,
  type PromptModel,
  saveAdapter,
  unload,
  withoutAdapters,
} from "@graft/ml/peft";
import { forEachDevice } from "../devices.ts";
import { type Golden, golden, here, near, shifted } from "./golden.ts";

const CLASSIFIERS = ["bert_sequence", "bert_token", "roberta_sequence", "roberta_token"];
const ALL = [
  ...CLASSIFIERS.flatMap((name) =>
    ["prompt", "prefix", "projection"].map((method) => `${name}.${method}`)
  ),
  "roberta_sequence.lstm",
  "tiny_llama.prompt",
  "gpt2.prefix",
  "reward_llama.prompt",
  "reward_llama.prefix",
];
/** A software GPU compiles for seconds: it gets each way into an encoder, and the network of its own. */
const ON_GPU = ["bert_sequence.prompt", "roberta_token.prefix", "roberta_sequence.lstm"];

const namesOn = (device: Device): readonly string[] => device.name === "cpu" ? ALL : ON_GPU;

/** A model, and what its golden file is run with. */
interface Case {
  readonly model: PromptModel & (CausalLM | DecoderClassifier | SequenceHead | TokenHead);
  logits(): Tensor;
  loss(): Tensor;
}

const FOLDERS: Readonly<Record<string, string>> = {
  tiny_llama: "tiny_llama",
  reward_llama: "rlhf/reward_llama",
};

async function open(name: string): Promise<Case> {
  const base = name.split(".")[0];
  const folder = FOLDERS[base] ?? `families/${base}`;
  const model = await loadModel(`${here}${folder}`) as Case["model"];
  // The reward model's own golden file holds no inputs of this kind.
  const from = base === "reward_llama" ? `peft_heads/${name}` : folder;
  await using file = await golden(`${from}/golden.safetensors`);
  const inputs = await file.ints("input_ids"), labels = await file.tensor("labels");
  const optional = async (key: string): Promise<Tensor | undefined> =>
    file.keys.includes(key) ? await file.ints(key) : undefined;
  const attentionMask = await optional("attention_mask");
  if (model instanceof CausalLM) {
    const is = attentionMask?.ne(0); // [B, T]
    const mask = is?.unsqueeze(1).unsqueeze(1); // [B, 1, 1, T]
    return {
      model,
      logits: () => {
        const logits = model.logits(model.forward(inputs, { mask }));
        return is ? logits.mul(is.unsqueeze(2).to("f32")) : logits;
      },
      loss: () => model.loss({ inputs, targets: shifted(labels) }, { mask }),
    };
  }
  if (model instanceof DecoderClassifier) {
    const batch = {
      inputs: await inputs.data() as Int32Array<ArrayBuffer>,
      labels: await labels.data() as Float32Array<ArrayBuffer>,
      shape: [inputs.shape[0], inputs.shape[1]] as const,
    };
    return { model, logits: () => model.forward(inputs), loss: () => model.loss(batch) };
  }
  const head: EncoderHead & { loss: SequenceHead["loss"] } = model;
  const options: EncoderOptions = { attentionMask, tokenTypes: await optional("token_type_ids") };
  return {
    model,
    logits: () => head.forward(inputs, options),
    loss: () => head.loss({ inputs, labels, ...options }),
  };
}

/** What is trained, under the golden file's names: PEFT numbers the activations among the layers. */
function trainedParameters(model: Case["model"]): Map<string, Variable> {
  const own = model.prompt!.namedParameters().map(([key, p]) => {
    const path = key.replace("adapters.default.", "");
    return [
      `prompt.${path.replace(/(transform|mlp_head)\.(\d)/, (_, l, i) => `${l}.${2 * i}`)}`,
      p,
    ];
  });
  return new Map([...own as [string, Variable][], ...adapterState(model)]);
}

async function checkSaved(model: Case["model"], folder: string, parts: string[]): Promise<void> {
  const out = await Deno.makeTempDir();
  await saveAdapter(model, out);
  for (const part of parts) {
    // One character a byte: a difference is short to read.
    const text = async (from: string): Promise<string> =>
      new TextDecoder("latin1").decode(await Deno.readFile(`${from}/${part}`));
    assertEquals(await text(out), await text(folder), part);
  }
  await Deno.remove(out, { recursive: true });
}

async function checkGradients(run: Case, folder: string, file: Golden): Promise<void> {
  const { model } = run;
  const config = JSON.parse(await Deno.readTextFile(`${folder}/adapter_config.json`));
  const start = config.peft_type === "PREFIX_TUNING" ? "random" : undefined;
  await injectPrompt(model, config as PromptConfig, { start });
  const trained = trainedParameters(model);
  const keys = file.keys.filter((key) => key.startsWith("grad.")).map((key) => key.slice(5));
  assertEquals(keys.toSorted(), [...trained.keys()].toSorted());
  assertEquals(model.trainable().length, keys.length);
  for (const key of keys) await trained.get(key)!.write(await file.floats(`parameter.${key}`));
  const loss = run.loss();
  loss.backward();
  near("loss", await loss.data(), await file.floats("loss"), 1e-5);
  for (const key of keys) {
    const { grad } = trained.get(key)!;
    near(key, await grad!.data(), await file.floats(`grad.${key}`), 1e-4);
  }
  await checkSaved(model, folder, ["adapter_config.json"]);
}

forEachDevice(
  "parity: prompts with heads are PEFT's, logits, files, gradients",
  async (device, t) => {
    for (const name of namesOn(device)) {
      await t.step(name, async () => {
        const run = await open(name);
        const { model } = run;
        const folder = `${here}peft_heads/${name}`;
        await using file = await golden(`peft_heads/${name}/golden.safetensors`);
        const logits = async (): Promise<Float32Array> =>
          await noGrad(run.logits).data() as Float32Array;
        const before = await logits();
        await loadAdapter(model, folder);
        near("logits", await logits(), await file.floats("logits"), 1e-4);
        assertEquals(await withoutAdapters(model, logits), before);
        await checkSaved(model, folder, ["adapter_config.json", "adapter_model.safetensors"]);
        unload(model);
        assertEquals(await logits(), before);
        await checkGradients(run, folder, file);
      });
    }
  },
);

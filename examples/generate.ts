/** Generates text with a model that `deno task train` adapted: `deno task generate --help`. */

import { parseArgs } from "@std/cli/parse-args";
import { type DeviceName, init } from "@graft/ml";
import { loadChatTemplate, loadModelFolder, StreamDecoder } from "@graft/ml/data";
import { generate } from "@graft/ml/nn";
import { loadAdapter, mergeAndUnload } from "@graft/ml/peft";
import { type Base, loadBase } from "./base.ts";
import { type Settings, UsageError } from "./settings.ts";

const HELP = `Continues a text by a model, with or without an adapter.

  deno task generate --adapter DIR_OR_ID --prompt "..." [flags]

  --adapter DIR_OR_ID  a PEFT adapter of any method: a folder, or an id of the hub; none: the model alone
  --model NAME         stories15M, or a model's folder or hub id (the adapter's base, or stories15M)
  --quantize FORMAT    int8 or nf4: hold weights in 8 or 4 bits, as in training  (none)
  --prompt TEXT        what to continue                     (Once upon a time)
  --chat               the prompt is a user's message, written by the model's chat template
  --max-tokens N       tokens at most                       (128)
  --temperature X      0: always the most probable token    (0.8)
  --top-k N            only the N most probable; 0: all     (0)
  --top-p X            only the most probable that reach X  (0.95)
  --seed N             decides every random choice          (0)
  --device NAME        auto, cpu or webgpu                  (auto)
  --help               this text`;

async function main(args: string[]): Promise<void> {
  const bad = (message: string): never => {
    throw new UsageError(`${message}; --help lists the flags`);
  };
  // deno-fmt-ignore
  const texts = [
    "adapter", "model", "quantize", "prompt", "max-tokens", "temperature", "top-k", "top-p", "seed", "device",
  ];
  const flags = parseArgs(args, {
    string: texts,
    boolean: ["chat", "help"],
    // The parser also gives an empty value here, which its flag has got: a prompt may be empty.
    unknown: (arg: string) => arg !== "" && bad(`there is no flag ${arg}`),
  });
  if (flags.help) {
    console.log(HELP);
    return;
  }
  const number = (name: string, otherwise: number, holds: (n: number) => boolean): number => {
    const text = flags[name] ?? `${otherwise}`;
    const value = text === "" ? NaN : Number(text);
    if (!holds(value)) bad(`--${name} is out of range: "${text}"`);
    return value;
  };
  const isWhole = (n: number): boolean => Number.isSafeInteger(n) && n >= 0;
  const options = {
    maxTokens: number("max-tokens", 128, isWhole),
    temperature: number("temperature", 0.8, (n) => n >= 0 && n < Infinity),
    topK: number("top-k", 0, isWhole),
    topP: number("top-p", 0.95, (n) => n > 0 && n <= 1),
    generator: number("seed", 0, isWhole),
  };
  const device = flags.device ?? "auto";
  if (!["auto", "cpu", "webgpu"].includes(device)) {
    bad(`--device must be auto, cpu or webgpu, got "${device}"`);
  }
  const quantize = flags.quantize ?? "none";
  if (quantize !== "none" && quantize !== "int8" && quantize !== "nf4") {
    bad(`--quantize must be none, int8 or nf4, got "${quantize}"`);
  }
  const { prompt = "Once upon a time" } = flags;

  const opened = await init({ device: device as DeviceName });
  const tell = (text: string): void => console.error(text);
  const adapter = flags.adapter && await loadModelFolder(flags.adapter);
  const trainedOn = adapter && await baseOf(adapter);
  const named = flags.model ? undefined : trainedOn;
  if (flags.model && trainedOn && trainedOn !== flags.model) {
    tell(`note: ${adapter} was trained beside ${trainedOn}`);
  }
  const base = await loadBase(
    flags.model ?? named ?? "stories15M",
    tell,
    quantize as Settings["quantize"],
  ).catch((error) => {
    if (!named) throw error;
    throw new Error(`${error.message}; ${adapter} names that base: --model says where it is now`);
  });
  const { model, tokenizer } = base;
  if (adapter) {
    const { peft_type } = await loadAdapter(model, adapter);
    // In the weights LoRA costs no step anything; a soft prompt stays before the text, and packed
    // weights would be rounded once more.
    if (peft_type === "LORA" && quantize === "none") await mergeAndUnload(model);
  }

  const ids = flags.chat ? await chatIds(base, prompt) : textIds(base, prompt);
  const stream = new StreamDecoder(tokenizer, ids);
  const print = (text: string): void => {
    Deno.stdout.writeSync(new TextEncoder().encode(text));
  };
  let before = flags.chat ? "" : prompt; // printed when nothing is wrong with it
  for await (const id of generate(model, ids, options)) {
    print(before + stream.push(id));
    before = "";
  }
  print(`${before}${stream.end()}\n`);
  await opened.close();
}

/** The model that an adapter's configuration names as its base. */
async function baseOf(adapter: string): Promise<string | undefined> {
  const text = await Deno.readTextFile(`${adapter}/adapter_config.json`).catch(() => "{}");
  // What is wrong with the file, loading the adapter will say.
  const name = text.match(/"base_model_name_or_path": *("(?:[^"\\]|\\.)+")/)?.[1];
  return name && JSON.parse(name);
}

function textIds({ tokenizer: { encode, bosId } }: Base, prompt: string): number[] {
  const ids = [...encode(prompt)];
  return bosId === undefined ? ids : [bosId, ...ids];
}

/** The prompt as a user's message, up to where the assistant answers. */
async function chatIds({ folder, tokenizer }: Base, prompt: string): Promise<number[]> {
  const template = await loadChatTemplate(folder);
  const messages = [{ role: "user", content: prompt }] as const;
  return [...tokenizer.encode(template.render(messages, { addGenerationPrompt: true }))];
}

if (import.meta.main) {
  try {
    await main(Deno.args);
    Deno.exit(0);
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}

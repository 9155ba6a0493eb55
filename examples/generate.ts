/** Generates text with an adapter that `deno task train` made: `deno task generate --help`. */

import { parseArgs } from "@std/cli/parse-args";
import { type DeviceName, init } from "@graft/ml";
import { loadStories15M, loadTokenizer, StreamDecoder } from "@graft/ml/data";
import { generate, LlamaForCausalLM } from "@graft/ml/nn";
import { loadAdapter, mergeAndUnload } from "@graft/ml/peft";

const HELP = `Continues a text, by stories15M with an adapter.

  deno task generate --adapter DIR --prompt "..." [flags]

  --adapter DIR        folder of a PEFT adapter, or of a whole model; none: the base
  --prompt TEXT        what to continue                     (Once upon a time)
  --max-tokens N       tokens at most                       (128)
  --temperature X      0: always the most probable token    (0.8)
  --top-k N            only the N most probable; 0: all     (0)
  --top-p X            only the most probable that reach X  (0.95)
  --seed N             decides every random choice          (0)
  --device NAME        auto, cpu or webgpu                  (auto)
  --help               this text`;

/** Flags that cannot be: exit code 2. */
class UsageError extends Error {}

async function main(args: string[]): Promise<void> {
  const bad = (message: string): never => {
    throw new UsageError(`${message}; --help lists the flags`);
  };
  const texts = [
    "adapter",
    "prompt",
    "max-tokens",
    "temperature",
    "top-k",
    "top-p",
    "seed",
    "device",
  ];
  const flags = parseArgs(args, {
    string: texts,
    boolean: ["help"],
    unknown: (arg: string) => bad(`there is no flag ${arg}`),
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
  const { adapter, prompt = "Once upon a time" } = flags;

  const opened = await init({ device: device as DeviceName });
  const base = await loadStories15M({ onProgress: (text) => console.error(text) });
  const tokenizer = await loadTokenizer(base);
  const isWholeModel = adapter && await exists(`${adapter}/config.json`);
  const model = await LlamaForCausalLM.fromPretrained(isWholeModel ? adapter : base);
  if (adapter && !isWholeModel) {
    const { peft_type } = await loadAdapter(model, adapter);
    // In the weights LoRA costs no step anything; a soft prompt stays before the text.
    if (peft_type === "LORA") await mergeAndUnload(model);
  }

  const ids = [...tokenizer.encode(prompt)];
  if (tokenizer.bosId !== undefined) ids.unshift(tokenizer.bosId);
  const stream = new StreamDecoder(tokenizer, ids);
  const print = (text: string): void => {
    Deno.stdout.writeSync(new TextEncoder().encode(text));
  };
  print(prompt);
  for await (const id of generate(model, ids, options)) print(stream.push(id));
  print(`${stream.end()}\n`);
  await opened.close();
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
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

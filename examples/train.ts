/**
 * Adapts stories15M, a small pretrained Llama, to a text: `deno task train --help`.
 *
 * All of a run is in this file, from the flags to the files it leaves, as a pattern for a loop of your
 * own. Left out: several devices, evaluation by anything but loss, and search over the settings.
 */

import { parseArgs } from "@std/cli/parse-args";
import {
  defaultGenerator,
  type DeviceName,
  flush,
  type GeneratorState,
  init,
  manualSeed,
  noGrad,
  read,
  type Tensor,
} from "@graft/ml";
import {
  DataLoader,
  type DataLoaderState,
  type Dataset,
  generalText,
  loadStories15M,
  loadTokenizer,
  mix,
  pack,
  readDocuments,
  shakespeare,
  splitTail,
  tokenizeCached,
  type Tokenizer,
} from "@graft/ml/data";
import { generate, LlamaForCausalLM } from "@graft/ml/nn";
import {
  AdamW,
  checkpointProgress,
  clipGradNorm,
  constantSchedule,
  loadCheckpoint,
  type OptimizerCounters,
  saveCheckpoint,
} from "@graft/ml/optim";
import { countParameters, inject, saveAdapter } from "@graft/ml/peft";
import { Metrics, Progress } from "./log.ts";
import { writeReport } from "./report.ts";

const HELP = `Adapts stories15M, a small pretrained language model, to a text.

  deno task train [flags]

  --method lora|full  train low-rank adapters, or every parameter     (lora)
  --rank N            rank of the adapters                            (8)
  --alpha X           their scale is alpha / rank                     (16)
  --target NAMES      layers to adapt: names with commas between, a
                      regular expression, or all-linear               (q_proj,k_proj,v_proj,o_proj)
  --data FILE         .txt, or .jsonl with "text", or with "prompt"
                      and "completion", on each line                  (three plays by Shakespeare)
  --device NAME       auto, cpu or webgpu                             (auto)
  --steps N           training steps                                  (60)
  --batch N           sequences in a step                             (4)
  --seq N             tokens in a sequence, at most 256               (256)
  --lr X              learning rate                                   (0.003)
  --mix X             share of general text mixed in, below 1         (0)
  --seed N            decides every random choice                     (0)
  --eval-every N      steps between evaluations; 0: only at the ends  (20)
  --out DIR           where the adapter and all else goes             (out/train)
  --resume            go on with the run in --out, up to --steps
  --help              this text`;

/** What the flags say. */
interface Settings {
  readonly method: "lora" | "full";
  readonly rank: number;
  readonly alpha: number;
  readonly target: string;
  readonly data: string;
  readonly device: DeviceName;
  readonly steps: number;
  readonly batch: number;
  readonly seq: number;
  readonly lr: number;
  readonly mix: number;
  readonly seed: number;
  readonly evalEvery: number;
  readonly out: string;
  readonly resume: boolean;
}

/** Flags that cannot be: exit code 2. */
class UsageError extends Error {}

/** Nats a token. */
interface Losses {
  readonly eval_loss: number;
  readonly general_loss: number;
}

/** Where a run stands between two steps: what a checkpoint holds beside its tensors. */
interface Place {
  readonly step: number;
  readonly loader: DataLoaderState;
  readonly generator: GeneratorState;
  readonly settings: Settings;
  readonly base: Losses;
}

/** A step whose loss has not been read yet. */
interface Pending {
  readonly step: number;
  readonly loss: Tensor;
  readonly norm: Tensor;
  readonly seconds: number;
  /** The run before this step. */
  readonly before: Place;
  readonly counters: OptimizerCounters;
}

/** A whole run; gives the process's exit code. */
async function train(settings: Settings): Promise<number> {
  const { out, batch, seq, seed, steps, method } = settings;
  const checkpoint = checkpointOf(out), sampleFile = `${out}/samples.json`;
  const log = new Progress();
  const device = await init({ device: settings.device });
  log.line(`device: ${device.name} (${device.description})`);

  // The model and the text. A tail of each text is held out.
  const folder = await loadStories15M({ onProgress: (text) => log.line(text) });
  const model = await LlamaForCausalLM.fromPretrained(folder);
  const tokenizer = await loadTokenizer(folder);
  const documents = settings.data ? await readDocuments(settings.data) : await shakespeare();
  log.note("tokenising");
  const text = pack(await tokenizeCached(documents, tokenizer), seq);
  const general = pack(await tokenizeCached(await generalText(), tokenizer), seq);
  const [trainText, heldOut] = splitTail(text, 0.05);
  const [generalTrain, generalHeldOut] = splitTail(general, 0.01);
  const loader = new DataLoader(mix(trainText, generalTrain, settings.mix, seed), {
    batchSize: batch,
    seed,
  });

  // What is trained.
  manualSeed(seed);
  if (method === "full") model.unfreeze();
  else {
    const target = settings.target;
    inject(model, {
      r: settings.rank,
      lora_alpha: settings.alpha,
      target_modules: /^[\w.,-]+$/.test(target) && target !== "all-linear"
        ? target.split(",")
        : target,
      base_model_name_or_path: "stories15M",
      task_type: "CAUSAL_LM",
    });
  }
  const parameters = new Map(model.namedParameters().filter(([, p]) => p.requiresGrad));
  const optimizer = new AdamW(model.trainable(), { lr: settings.lr, weightDecay: 0 });
  // It does not depend on --steps, so that a run that is resumed with more steps is one longer run.
  const schedule = constantSchedule({ warmup: 10 });
  const counts = countParameters(model);
  log.line(
    `${method}: trains ${count(counts.trainable)} of ${count(counts.total)} parameters on ` +
      `${count(trainText.length)} windows of ${seq} tokens; ${heldOut.length} are held out`,
  );

  const evaluate = async (): Promise<Losses> => {
    log.note("evaluating");
    model.eval();
    const eval_loss = await meanLoss(model, heldOut, batch);
    const general_loss = await meanLoss(model, generalHeldOut, batch);
    return { eval_loss, general_loss };
  };
  const prompt = promptOf(heldOut, tokenizer);
  const sample = async (when: "before" | "after"): Promise<void> => {
    log.note("generating a sample");
    const ids = [...prompt];
    const options = { maxTokens: 80, temperature: 0.8, topP: 0.95, generator: seed };
    for await (const id of generate(model, prompt, options)) ids.push(id);
    const given = tokenizer.decode(prompt);
    const text = tokenizer.decode(ids).slice(given.length);
    log.line(`\n${when}: ${given}|${text}\n`);
    const samples = when === "before" ? {} : JSON.parse(await Deno.readTextFile(sampleFile));
    await Deno.mkdir(out, { recursive: true });
    await Deno.writeTextFile(
      sampleFile,
      JSON.stringify({ ...samples, prompt: given, [when]: text }),
    );
  };

  let step = 0;
  let base: Losses;
  if (settings.resume) {
    const at = await loadCheckpoint(checkpoint, { parameters, optimizer }) as Place;
    loader.load(at.loader);
    defaultGenerator().load(at.generator);
    ({ step, base } = at);
    log.line(`resumes after step ${step}`);
  } else {
    await sample("before");
    base = await evaluate();
    log.line(
      `step 0: held-out loss ${base.eval_loss.toFixed(3)}, general ${base.general_loss.toFixed(3)}`,
    );
  }
  const metrics = await Metrics.open(`${out}/metrics.jsonl`, step);
  if (step === 0) await metrics.write({ step, ...base });

  const place = (): Place => ({
    step,
    loader: loader.state(),
    generator: defaultGenerator().state(),
    settings,
    base,
  });
  const save = async (at: Place, counters?: OptimizerCounters): Promise<void> => {
    log.note("saving");
    await saveCheckpoint(checkpoint, { parameters, optimizer }, at, counters);
    if (method === "lora") await saveAdapter(model, out);
    else {
      await model.save(`${out}/model.safetensors`);
      await Deno.copyFile(`${folder}/config.json`, `${out}/config.json`);
    }
  };

  // The loss of a step is read after the next one is under way: reading it at once would leave the
  // device waiting.
  let pending: Pending | null = null;
  const settle = async (losses?: Losses): Promise<void> => {
    if (!pending) return;
    const { step: of, before, counters, seconds } = pending;
    const [[loss], [norm]] = await read(pending.loss, pending.norm);
    pending = null;
    if (!Number.isFinite(loss) || !Number.isFinite(norm)) {
      // The optimizer held back this step and the one after it: the parameters are those before.
      await save(before, counters);
      throw new Error(
        `step ${of}: the loss is ${loss} and the gradient's norm ${norm}, so the run stops; ${out} ` +
          `holds the run as it was after step ${before.step}; try a lower --lr`,
      );
    }
    const tokens_per_second = Math.round(batch * seq / seconds);
    const learning_rate = settings.lr * schedule(of - 1);
    const record = { step: of, loss, learning_rate, grad_norm: norm, tokens_per_second };
    await metrics.write({ ...record, ...losses });
    log.step(of, steps, loss, tokens_per_second);
  };

  // Ctrl-C ends the run after the step at hand, a second one at once.
  let stopped = false;
  const stop = (): void => {
    if (stopped) Deno.exit(130);
    stopped = true;
    log.line("stopping after this step");
  };
  Deno.addSignalListener("SIGINT", stop);

  let last = base;
  const batches = loader[Symbol.iterator]();
  while (step < steps && !stopped) {
    const started = performance.now();
    const before = place(), counters = optimizer.counters();
    model.train();
    const loss = model.loss(batches.next().value);
    loss.backward();
    const norm = clipGradNorm(optimizer.parameters, 1);
    optimizer.lr = settings.lr * schedule(step);
    // Where the gradient is not finite, the step changes nothing.
    await optimizer.step({ when: norm.isnan().not().and(norm.lt(3e38)) });
    optimizer.zeroGrad();
    step++;

    await settle();
    const seconds = (performance.now() - started) / 1000;
    pending = { step, loss, norm, seconds, before, counters };
    const isLast = step === steps;
    if (isLast || (settings.evalEvery > 0 && step % settings.evalEvery === 0)) {
      last = await evaluate();
      await settle(last);
      await save(place());
      log.line(
        `step ${step}: held-out loss ${last.eval_loss.toFixed(3)} (before training ` +
          `${base.eval_loss.toFixed(3)}), general ${last.general_loss.toFixed(3)} ` +
          `(${base.general_loss.toFixed(3)})`,
      );
    }
  }
  Deno.removeSignalListener("SIGINT", stop);

  if (stopped) {
    await settle();
    await save(place());
    log.line(`stopped after step ${step}; to go on: deno task train --out ${out} --resume`);
  } else {
    await sample("after");
    const summary = {
      base_eval_loss: base.eval_loss,
      eval_loss: last.eval_loss,
      base_general_loss: base.general_loss,
      general_loss: last.general_loss,
      trainable_parameters: counts.trainable,
      total_parameters: counts.total,
      peak_bytes: device.counters.peakBytes,
    };
    await metrics.write({ summary });
    log.line(`wrote ${await writeReport(out)}`);
    log.line(`done in ${log.elapsed()}; try: deno task generate --adapter ${out} --prompt "..."`);
  }
  await device.close();
  return stopped ? 130 : 0;
}

/** Mean loss a token over all of a dataset. */
async function meanLoss(model: LlamaForCausalLM, data: Dataset, batch: number): Promise<number> {
  const losses: Tensor[] = [];
  const counts: number[] = [];
  for (const rows of new DataLoader(data, { batchSize: batch, shuffle: false, epochs: 1 })) {
    losses.push(noGrad(() => model.loss(rows)));
    counts.push(rows.targetCount);
    await flush(); // a batch at a time holds memory
  }
  const values = await read(...losses);
  const total = counts.reduce((sum, n) => sum + n, 0);
  return values.reduce((sum, [loss], i) => sum + loss * counts[i], 0) / total;
}

/** The beginning of the held-out text. */
function promptOf(heldOut: Dataset, { bosId, eosId }: Tokenizer): number[] {
  const ids = Array.from(heldOut.window(0, 0).inputs.subarray(0, 16));
  const words = ids.filter((id) => id !== bosId && id !== eosId);
  return bosId === undefined ? words : [bosId, ...words];
}

function count(n: number): string {
  return n.toLocaleString("en");
}

function checkpointOf(out: string): string {
  return `${out}/checkpoint/state.safetensors`;
}

/** What the flags say, or null where they ask for help. A resumed run keeps to its first flags. */
async function parseFlags(args: string[]): Promise<Settings | null> {
  const bad = (message: string): never => {
    throw new UsageError(`${message}; --help lists the flags`);
  };
  // deno-fmt-ignore
  const texts = [
    "method", "rank", "alpha", "target", "data", "device", "steps", "batch", "seq", "lr", "mix",
    "seed", "eval-every", "out",
  ];
  const flags = parseArgs(args, {
    string: texts,
    boolean: ["resume", "help"],
    unknown: (arg: string) => bad(`there is no flag ${arg}`),
  });
  if (flags.help) return null;
  for (const name of texts) {
    if (flags[name] === "" || Array.isArray(flags[name])) bad(`--${name} needs one value`);
  }
  const number = (name: string, otherwise: number, least: number, most = Infinity): number => {
    const value = Number(flags[name] ?? otherwise);
    if (!(value >= least && value <= most)) {
      const range = most === Infinity ? `from ${least} on` : `from ${least} to ${most}`;
      bad(`--${name} must be a number ${range}, got "${flags[name]}"`);
    }
    return value;
  };
  const whole = (name: string, otherwise: number, least: number, most?: number): number => {
    const value = number(name, otherwise, least, most);
    if (!Number.isSafeInteger(value)) bad(`--${name} must be whole, got "${flags[name]}"`);
    return value;
  };
  const word = <T extends string>(name: string, words: readonly T[]): T => {
    const value = flags[name] ?? words[0];
    if (!words.includes(value)) bad(`--${name} must be ${words.join(" or ")}, got "${value}"`);
    return value;
  };
  const settings: Settings = {
    method: word("method", ["lora", "full"]),
    rank: whole("rank", 8, 1),
    alpha: number("alpha", 16, 0),
    target: flags.target ?? "q_proj,k_proj,v_proj,o_proj",
    data: flags.data ?? "",
    device: word("device", ["auto", "cpu", "webgpu"]),
    steps: whole("steps", 60, 1),
    batch: whole("batch", 4, 1),
    seq: whole("seq", 256, 2, 256),
    lr: number("lr", 0.003, 0),
    mix: number("mix", 0, 0, 0.99),
    seed: whole("seed", 0, 0),
    evalEvery: whole("eval-every", 20, 0),
    out: flags.out ?? "out/train",
    resume: flags.resume,
  };
  if (!settings.resume) return settings;

  const { settings: first, step } = await checkpointProgress(checkpointOf(settings.out)) as Place;
  if (step >= settings.steps) {
    bad(`the run in ${settings.out} has taken ${step} steps: --steps must be above`);
  }
  const mine = ["steps", "device", "out", "evalEvery", "resume"];
  const result: Record<string, unknown> = { ...settings };
  for (const [key, value] of Object.entries(first)) {
    if (mine.includes(key)) continue;
    if (flags[key] !== undefined && result[key] !== value) {
      bad(`the run in ${settings.out} began with --${key} ${value}, which --resume cannot change`);
    }
    result[key] = value;
  }
  return result as unknown as Settings;
}

if (import.meta.main) {
  try {
    const settings = await parseFlags(Deno.args);
    if (!settings) console.log(HELP);
    Deno.exit(settings ? await train(settings) : 0);
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}

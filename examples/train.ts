/**
 * Adapts a language model to a text: `deno task train --help`.
 *
 * The loop is in this file, with all that it leaves, as a pattern for one of your own; what it is told
 * is in settings.ts, the model in base.ts, the methods in methods.ts, the texts in texts.ts. Several
 * devices or machines run the same loop, each on its share of every batch. Left out: evaluation by
 * anything but loss.
 */

import {
  defaultGenerator,
  type Device,
  flush,
  type GeneratorState,
  init,
  noGrad,
  read,
  type Tensor,
} from "@graft/ml";
import { DataLoader, type DataLoaderState, type Dataset, type Tokenizer } from "@graft/ml/data";
import {
  DistributedDataParallel,
  initProcessGroup,
  onFirstRank,
  type ProcessGroup,
  reduceMetrics,
  runLocal,
  singleGroup,
  threadShare,
} from "@graft/ml/dist";
import { type CausalLM, generate } from "@graft/ml/nn";
import {
  AdamW,
  clipGradNorm,
  constantSchedule,
  loadCheckpoint,
  type OptimizerCounters,
  saveCheckpoint,
} from "@graft/ml/optim";
import { countParameters, describeParameters, withoutAdapters } from "@graft/ml/peft";
import { type Base, loadBase } from "./base.ts";
import { writeWhole } from "./charts.ts";
import { Metrics, Progress } from "./log.ts";
import { adapt, saveResult, windowLength } from "./methods.ts";
import { writeReport } from "./report.ts";
import {
  checkpointOf,
  FLAGS,
  LEARNING_RATES,
  machineOf,
  METHODS,
  readFlags,
  resumed,
  type Settings,
  settingsOf,
  UsageError,
} from "./settings.ts";
import { StopSignals } from "./stop.ts";
import { loadTexts } from "./texts.ts";

const HELP = `Adapts a language model to a text.

  deno task train [flags]

  --model NAME        stories15M, or a model in Hugging Face's layout: a
                      folder, or an id of the hub                     (stories15M)
  --method NAME       lora, dora: low-rank adapters; prompt: vectors
                      before the text; ptuning-v2: keys and values
                      before the text in every layer; full: all       (lora)
  --rank N            rank of low-rank adapters                       (32)
  --alpha X           their scale is alpha / rank                     (64)
  --target NAMES      layers they go to: a regular expression, or names
                      with commas between, of which all-linear is all
                      linear layers but the output layer              (all-linear)
  --quantize FORMAT   int8 or nf4: hold the frozen weights of linear
                      layers in 8 or 4 bits                           (none)
  --virtual-tokens N  how many prompt and ptuning-v2 put before       (16)
  --data FILE         .txt, or .jsonl with "text", with "prompt" and
                      "completion", or with "messages" on each line   (three plays by Shakespeare)
  --device NAME       auto, cpu or webgpu                             (auto)
  --devices N         devices of this machine to train on, each with
                      a thread of its own; for several machines start
                      the same under mpiexec or srun                  (1)
  --threads N         threads of a device on the CPU                  (all cores, shared by the devices)
  --steps N           training steps                                  (60)
  --batch N           sequences in a step, of all devices together    (4)
  --seq N             tokens in a sequence      (256, or what the model has positions for)
  --lr X              learning rate             (${rates()})
  --mix X             share of general text mixed in, below 1         (0)
  --seed N            decides every random choice                     (0)
  --eval-every N      steps between evaluations; 0: only at the ends  (20)
  --sample N          tokens of the samples at the ends; 0: none      (80)
  --out DIR           where the adapter, or the model, and all else goes (out/train)
  --config FILE       a JSON object of these, without the dashes; flags stand over it
  --resume            go on with the run in --out, up to --steps
  --help              this text`;

/** The methods' own learning rates, as the help text has them. */
function rates(): string {
  return METHODS.map((method) => `${method} ${LEARNING_RATES[method]}`).join(", ");
}

/** Nats a token. */
export interface Losses {
  readonly eval_loss: number;
  readonly general_loss: number;
}

/** Where a run stands between two steps: what a checkpoint holds beside its tensors. */
interface Place {
  readonly step: number;
  /** Time that the steps took. */
  readonly seconds: number;
  readonly loader: DataLoaderState;
  readonly generator: GeneratorState;
  readonly settings: Settings;
  readonly base: Losses;
}

/** A step whose loss has not been read yet. */
interface Pending {
  readonly step: number;
  readonly loss: Tensor;
  /** Targets that the loss is a mean over. */
  readonly targets: number;
  readonly norm: Tensor;
  readonly seconds: number;
  /** The run before this step. */
  readonly before: Place;
  readonly counters: OptimizerCounters;
}

/** What a program that runs a training wants of it. */
export interface TrainOptions {
  /** Where lines go; default: the terminal. */
  readonly log?: Progress;
  /** Who trains together; default: this process alone. */
  readonly group?: ProcessGroup;
  /** Threads of a device on the CPU; default: its share of the cores. */
  readonly threads?: number;
  /** Told of each evaluation; where it answers true, the run ends there, as by a signal. */
  readonly onEvaluation?: (step: number, losses: Losses) => boolean | void;
}

/** What a run has come to. */
export interface Outcome {
  /** Whether it ended before its last step, with a checkpoint to go on from. */
  readonly stopped: boolean;
  /** What a process is to end with: 130 or 143 where SIGINT or SIGTERM stopped the run, else 0. */
  readonly code: number;
  readonly step: number;
  /** Before training. */
  readonly base: Losses;
  /** At the last evaluation. */
  readonly last: Losses;
  readonly trainable: number;
  readonly total: number;
  /** The most that the device has held at once. */
  readonly peakBytes: number;
  /** Time that training steps took. */
  readonly seconds: number;
}

/**
 * A whole run, with its files in `settings.out`.
 *
 * Throws an `Error` that says what was wrong; where a loss is not a number, after saving the run as it
 * was before.
 */
export async function train(settings: Settings, options: TrainOptions = {}): Promise<Outcome> {
  const { group = singleGroup() } = options;
  const { threads = group.size > 1 ? threadShare(group) : undefined } = options;
  const device = await init({ device: settings.device, threads });
  try {
    return await run(device, group, settings, options);
  } finally {
    await device.close();
  }
}

async function run(
  device: Device,
  group: ProcessGroup,
  settings: Settings,
  { log = new Progress(), onEvaluation }: TrainOptions,
): Promise<Outcome> {
  const { out, batch, seed, steps, method } = settings;
  const checkpoint = checkpointOf(out), sampleFile = `${out}/samples.json`;
  const together = group.size > 1 ? `, one of ${group.size} (${group.backend})` : "";
  log.line(`device: ${device.name} (${device.description})${together}`);

  // The model and the text. A tail of each text is held out.
  const base = await loadBase(settings.model, (text) => log.line(text), settings.quantize);
  const { model, tokenizer } = base;
  const seq = windowLength(settings, base);
  log.note("tokenising");
  const { train, heldOut, generalHeldOut, start } = await loadTexts(settings, base, seq);
  const loader = new DataLoader(train, { batchSize: batch, seed, shard: group });

  // What is trained.
  await checkOut(settings, base);
  await adapt(base, settings, start);
  const parameters = new Map(model.namedParameters().filter(([, p]) => p.requiresGrad));
  const optimizer = new AdamW(model.trainable(), { lr: settings.lr, weightDecay: 0 });
  // It does not depend on --steps, so that a run that is resumed with more steps is one longer run.
  const schedule = constantSchedule({ warmup: 10 });
  const counts = countParameters(model);
  log.line(`${method}: ${describeParameters(model)}`);
  log.line(`text: ${count(train.length)} windows of ${seq} tokens; ${heldOut.length} are held out`);

  const evaluate = async (): Promise<Losses> => {
    log.note("evaluating");
    model.eval();
    const eval_loss = await meanLoss(model, heldOut, batch, group);
    const general_loss = await meanLoss(model, generalHeldOut, batch, group);
    return { eval_loss, general_loss };
  };
  const prompt = promptOf(heldOut, tokenizer);
  const sample = async (when: "before" | "after"): Promise<void> => {
    if (settings.sample === 0) return;
    log.note("generating a sample");
    const ids = [...prompt];
    const how = { maxTokens: settings.sample, temperature: 0.8, topP: 0.95, generator: seed };
    for await (const id of generate(model, prompt, how)) ids.push(id);
    const given = tokenizer.decode(prompt);
    const text = tokenizer.decode(ids).slice(given.length);
    log.line(`\n${when}: ${given}|${text}\n`);
    const samples = when === "before" ? {} : await readSamples(sampleFile);
    await Deno.mkdir(out, { recursive: true });
    await writeWhole(sampleFile, JSON.stringify({ ...samples, prompt: given, [when]: text }));
  };

  let step = 0, seconds = 0;
  let before: Losses;
  if (settings.resume) {
    const at = await loadCheckpoint(checkpoint, { parameters, optimizer }) as Place;
    loader.load(at.loader);
    defaultGenerator().load(at.generator);
    ({ step, seconds, base: before } = at);
    log.line(`resumes after step ${step}`);
  } else {
    // The base itself: a soft prompt changes it before the first step.
    await onFirstRank(
      group,
      "a sample",
      () => withoutAdapters(model, () => sample("before")),
    );
    before = await withoutAdapters(model, evaluate);
    log.line(
      `step 0: held-out loss ${before.eval_loss.toFixed(3)}, general ` +
        before.general_loss.toFixed(3),
    );
  }
  const metrics = group.rank === 0 ? await Metrics.open(`${out}/metrics.jsonl`, step) : null;
  if (step === 0) await metrics?.write({ step, ...before });

  const place = (): Place => ({
    step,
    seconds,
    loader: loader.state(),
    generator: defaultGenerator().state(),
    settings: { ...settings, seq },
    base: before,
  });
  const save = async (at: Place, counters?: OptimizerCounters): Promise<void> => {
    log.note("saving");
    await onFirstRank(group, "saving", async () => {
      await saveCheckpoint(checkpoint, { parameters, optimizer }, at, counters);
      await saveResult(base, settings);
    });
  };

  // The loss of a step is read after the next one is under way: reading it at once would leave the
  // device waiting.
  let pending: Pending | null = null;
  const settle = async (losses?: Losses): Promise<void> => {
    if (!pending) return;
    const { step: of, before, counters, seconds, targets } = pending;
    const [[own], [norm]] = await read(pending.loss, pending.norm);
    pending = null;
    const { loss } = await reduceMetrics(group, { loss: own }, targets);
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
    await metrics?.write({ ...record, ...losses });
    log.step(of, steps, loss, tokens_per_second);
  };

  // A signal ends the run after the step at hand. It comes to ranks at different steps, or to one only.
  using signals = new StopSignals(() => log.line("stopping after this step"));
  let stopped = false, code = 0;
  const ends = async (): Promise<boolean> => {
    const told = Float64Array.of(Number(stopped), signals.code);
    const [end, most] = await group.allReduce(told, { op: "max", label: "whether to stop" });
    code = most;
    return stopped = end > 0 || code > 0;
  };

  let last = before;
  // From here on gradients are those of all ranks' batches.
  using ddp = new DistributedDataParallel(model, group);
  const batches = loader[Symbol.iterator]();
  while (!(await ends()) && step < steps) {
    const started = performance.now();
    const here = place(), counters = optimizer.counters();
    model.train();
    const rows = batches.next().value;
    const loss = ddp.loss(rows);
    loss.backward();
    const norm = clipGradNorm(optimizer.parameters, 1);
    optimizer.lr = settings.lr * schedule(step);
    // Where the gradient is not finite, the step changes nothing.
    await optimizer.step({ when: norm.isnan().not().and(norm.lt(3e38)) });
    optimizer.zeroGrad();
    step++;

    await settle();
    const took = (performance.now() - started) / 1000;
    seconds += took;
    const targets: number = rows.targetCount;
    pending = { step, loss, targets, norm, seconds: took, before: here, counters };
    const isLast = step === steps;
    if (isLast || (settings.evalEvery > 0 && step % settings.evalEvery === 0)) {
      last = await evaluate();
      await settle(last);
      await save(place());
      log.line(
        `step ${step}: held-out loss ${last.eval_loss.toFixed(3)} (before training ` +
          `${before.eval_loss.toFixed(3)}), general ${last.general_loss.toFixed(3)} ` +
          `(${before.general_loss.toFixed(3)})`,
      );
      if (onEvaluation?.(step, last) && !isLast) stopped = true;
    }
  }

  if (stopped) {
    await settle();
    await save(place());
  } else {
    signals[Symbol.dispose](); // all is saved
    await onFirstRank(group, "a sample", () => sample("after"));
    const summary = {
      base_eval_loss: before.eval_loss,
      eval_loss: last.eval_loss,
      base_general_loss: before.general_loss,
      general_loss: last.general_loss,
      trainable_parameters: counts.trainable,
      total_parameters: counts.total,
      peak_bytes: device.counters.peakBytes,
    };
    await metrics?.write({ summary });
    if (group.rank === 0) await writeReport(out);
  }
  const { peakBytes } = device.counters;
  return { stopped, code, step, base: before, last, ...counts, peakBytes, seconds };
}

/** Training all of a model must not overwrite the folder that it comes from. */
async function checkOut({ method, out }: Settings, { folder }: Base): Promise<void> {
  const real = (path: string): Promise<string> => Deno.realPath(path).catch(() => path);
  if (method === "full" && await real(out) === await real(folder)) {
    throw new UsageError(`--out ${out} is the folder of the model itself: choose another`);
  }
}

/** What an earlier part of the run has left. */
async function readSamples(path: string): Promise<object> {
  return JSON.parse(await Deno.readTextFile(path).catch(() => "{}"));
}

/** Mean loss a token over all of a dataset. */
async function meanLoss(
  model: CausalLM,
  data: Dataset,
  batch: number,
  group: ProcessGroup,
): Promise<number> {
  const losses: Tensor[] = [];
  const counts: number[] = [];
  const options = { batchSize: batch, shuffle: false, epochs: 1, shard: group };
  for (const rows of new DataLoader(data, options)) {
    losses.push(noGrad(() => model.loss(rows)));
    counts.push(rows.targetCount);
    await flush(); // a batch at a time holds memory
  }
  const values = await read(...losses);
  const total = counts.reduce((sum, n) => sum + n, 0);
  const loss = values.reduce((sum, [loss], i) => sum + loss * counts[i], 0) / total;
  return (await reduceMetrics(group, { loss }, total)).loss;
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

/** A run as one rank of those that were launched; rank 0 says how it goes. */
export async function main(settings: Settings, threads?: number): Promise<Outcome> {
  const group = await initProcessGroup();
  // Open MPI gives a rank a terminal, and what is written there may go to a file.
  const isTerminal = group.backend !== "mpi" && Deno.stdout.isTerminal();
  const log = new Progress(group.rank > 0, isTerminal);
  const outcome = await train(settings, { log, group, threads });
  await group.close();
  const { out, method } = settings;
  if (outcome.stopped) {
    log.line(`stopped after step ${outcome.step}; to go on: deno task train --out ${out} --resume`);
    return outcome;
  }
  log.line(`wrote ${out}/report.html`);
  const which = method === "full" ? "--model" : "--adapter";
  log.line(`done in ${log.elapsed()}; try: deno task generate ${which} ${out} --prompt "..."`);
  return outcome;
}

if (import.meta.main) {
  try {
    const { given, on } = await readFlags(Deno.args, [...FLAGS, "devices", "threads"], [
      "resume",
      "help",
    ]);
    if (on.has("help")) {
      console.log(HELP);
      Deno.exit(0);
    }
    const settings = on.has("resume") ? await resumed(given) : settingsOf(given);
    const { devices, threads } = machineOf(given);
    let outcome: Outcome;
    if (devices === 1) outcome = await main(settings, threads);
    else {
      using _ = new StopSignals(); // each thread hears them too; here a second one ends all
      const args = [settings, threads];
      [outcome] = await runLocal(new URL(import.meta.url), { size: devices, args }) as Outcome[];
    }
    Deno.exit(outcome.code);
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}

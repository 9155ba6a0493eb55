/**
 * The three stages of InstructGPT on stories15M: `deno task rlhf --help`.
 *
 * Fine-tuning on passages of children's books, a reward model from ranked answers, PPO against it with
 * and without PPO-ptx. Each stage is a file in `rlhf/`, as a pattern for one of your own. Left out:
 * several devices, a value model of its own, and chat.
 */

import { parseArgs } from "@std/cli/parse-args";
import { type DeviceName, init } from "@graft/ml";
import { loadStories15M, loadTokenizer, type Tokenizer } from "@graft/ml/data";
import { type RankedAnswers, readRankings, type Reward, RewardModel } from "@graft/ml/rlhf";
import { writeWhole } from "./charts.ts";
import { Progress } from "./log.ts";
import { runPPO } from "./rlhf/ppo.ts";
import { measureBest } from "./rlhf/measure.ts";
import { results, writeReport } from "./rlhf/report.ts";
import { type Answered, rankedByRule, sampleRanked, trainReward } from "./rlhf/reward.ts";
import { fineTune } from "./rlhf/sft.ts";
import { type Figures, type Host, isThere, Stopped } from "./rlhf/stage.ts";
import { readTexts, type Texts } from "./rlhf/texts.ts";
import { StopSignals } from "./stop.ts";

const HELP = `Fine-tuning, a reward model and PPO, one after the other, on stories15M.

  deno task rlhf [flags]

  --rankings FILE     a person's ranks of the answers, in place of the rule's
  --until STAGE       end after sft, answers, reward, ppo or ppo-ptx  (ppo-ptx)
  --sft-steps N       steps of fine-tuning                            (30)
  --prompts N         prompts with 4 answers each to rank             (512)
  --held-out N        prompts to measure every policy on              (64)
  --reward-epochs N   times the reward model sees them                (2)
  --ppo-steps N       rollouts that PPO learns from                   (7)
  --rollouts N        answers in each, an even number                 (64)
  --ppo-lr X          learning rate of PPO                            (0.0005)
  --beta X            coefficient of the KL penalty at the start      (0.7)
  --kl-target X       KL to steer to, in nats an answer               (6)
  --kl-limit X        KL at which a run stops, in nats an answer      (40)
  --ptx X             weight of PPO-ptx's loss                        (0.3)
  --device NAME       auto, cpu or webgpu                             (auto)
  --seed N            decides every random choice                     (0)
  --out DIR           where everything goes                           (out/rlhf)
  --resume            go on with the run in --out
  --help              this text

The rule that stands in for a person counts cheerful words and takes off the gloomy ones. To rank
yourself: run with --until answers, read answers.jsonl, write a line of
{"id": "prompt-0", "ranks": [0, 2, 1, 2]} for each prompt you care to rank, 0 for the best answer and
equal numbers for a tie, and go on with --resume --rankings FILE.`;

const STAGES = ["ppo-ptx", "sft", "answers", "reward", "ppo"] as const;

/** What the flags say. */
interface Settings {
  readonly rankings: string;
  readonly until: typeof STAGES[number];
  readonly sftSteps: number;
  readonly prompts: number;
  readonly heldOut: number;
  readonly rewardEpochs: number;
  readonly ppoSteps: number;
  readonly rollouts: number;
  readonly ppoLr: number;
  readonly beta: number;
  readonly klTarget: number;
  readonly klLimit: number;
  readonly ptx: number;
  readonly device: DeviceName;
  readonly seed: number;
  readonly out: string;
  readonly resume: boolean;
}

/** Flags that cannot be: exit code 2. */
class UsageError extends Error {}

/** What the stages share. */
interface Recipe extends Host {
  readonly settings: Settings;
  readonly log: Progress;
  readonly base: string;
  readonly tokenizer: Tokenizer;
  readonly texts: Texts;
  readonly summaries: Record<string, Figures>;
}

/** The whole recipe; gives the process's exit code. */
async function run(settings: Settings): Promise<number> {
  const { out } = settings;
  const log = new Progress();
  const device = await init({ device: settings.device });
  log.line(`device: ${device.name} (${device.description})`);
  using signals = new StopSignals(() => log.line("stopping after this step"));
  try {
    await begin(settings);
    const base = await loadStories15M({ onProgress: (text) => log.line(text) });
    const tokenizer = await loadTokenizer(base);
    log.note("reading the texts");
    const texts = await readTexts(tokenizer, settings.prompts, settings.heldOut);
    const host = { log, stopped: () => signals.code > 0 };
    const recipe: Recipe = { ...host, settings, base, tokenizer, texts, summaries: {} };
    try {
      await stages(recipe);
    } finally { // what has been done is drawn, however it ended
      log.line(`wrote ${await writeReport(settings, recipe.summaries)}`);
    }
    log.line(`done in ${log.elapsed()}; everything is in ${out}`);
    return 0;
  } catch (error) {
    if (!(error instanceof Stopped)) throw error;
    log.line(`${error.message}; to go on: the same flags with --resume`);
    return signals.code;
  } finally {
    await device.close();
  }
}

async function stages(recipe: Recipe): Promise<void> {
  const { settings, base, tokenizer, texts, log } = recipe;
  const { out, until, seed } = settings;
  const sft = `${out}/sft`, rewardFolder = `${out}/reward`;
  await once("sft", recipe, () => fineTune(base, sft, texts, settings, recipe));
  if (until === "sft") return;

  const path = `${out}/answers.jsonl`;
  const answered = await sampleRanked(sft, path, texts, tokenizer, seed, recipe);
  log.line(
    `answers: ${answered.length} prompts with ${answered[0].answers.length} each, in ${path}`,
  );
  if (until === "answers") return;
  const groups = await ranked(answered, settings);
  await once(
    "reward",
    recipe,
    () => trainReward(sft, rewardFolder, groups, texts, settings, recipe),
  );
  if (until === "reward") return;

  const model = await RewardModel.fromPretrained(sft, { adapter: rewardFolder });
  const reward: Reward = (answers) => model.reward(answers, { batch: 32 });
  await once("best-of-n", recipe, () => measureBest(sft, reward, texts, tokenizer, recipe));
  for (const [stage, ptx] of [["ppo", 0], ["ppo-ptx", settings.ptx]] as const) {
    await once(
      stage,
      recipe,
      () => runPPO(sft, `${out}/${stage}`, reward, texts, tokenizer, { ...settings, ptx }, recipe),
    );
    if (until === stage) break;
  }
  log.line(`\n${aligned(results(recipe.summaries))}\n`);
}

/** Runs a stage unless a run before has ended it, and keeps its figures. */
async function once(name: string, recipe: Recipe, stage: () => Promise<Figures>): Promise<void> {
  const { settings, log, summaries } = recipe;
  const path = `${settings.out}/${name}/done.json`;
  const isDone = await isThere(path);
  await Deno.mkdir(`${settings.out}/${name}`, { recursive: true });
  const figures: Figures = isDone ? JSON.parse(await Deno.readTextFile(path)) : await stage();
  if (!isDone) await writeWhole(path, `${JSON.stringify(figures, null, 2)}\n`);
  summaries[name] = figures;
  const shown = Object.entries(figures).map(([key, value]) => `${key} ${+value.toFixed(3)}`);
  log.line(`${name}: ${isDone ? "done before" : `done at ${log.elapsed()}`}: ${shown.join(", ")}`);
}

/**
 * The answers with the ranks that a person gave, or the rule gives. A reward model that has begun goes on
 * with its own, which stand in its folder.
 */
async function ranked(
  answered: readonly Answered[],
  { out, rankings }: Settings,
): Promise<RankedAnswers[]> {
  const path = `${out}/reward/ranks.jsonl`;
  const given = rankings === "" ? null : await readRankings(rankings, answered);
  const hasBegun = await isThere(`${out}/reward/checkpoint.safetensors`);
  const kept = hasBegun ? await readRankings(path, answered) : null;
  const asText = (ranks: ReadonlyMap<string, readonly number[]>): string =>
    answered.filter(({ id }) => ranks.has(id))
      .map(({ id }) => `${JSON.stringify({ id, ranks: ranks.get(id) })}\n`).join("");
  if (given && kept && asText(given) !== asText(kept)) {
    throw new Error(
      `the reward model in ${out}/reward learns from other ranks than those in ${rankings}: choose ` +
        `another --out, or remove ${out}/reward and what came of it: best-of-n, ppo and ppo-ptx`,
    );
  }
  const ranks = given ?? kept ?? new Map(answered.map((a) => [a.id, rankedByRule(a)]));
  if (!kept) {
    await Deno.mkdir(`${out}/reward`, { recursive: true });
    await writeWhole(path, asText(ranks));
  }
  return answered.flatMap(({ id, promptTokens: prompt, tokens: answers }) => {
    const own = ranks.get(id);
    return own ? [{ prompt, answers, ranks: own }] : [];
  });
}

/** Cells in columns. */
function aligned(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  return rows.map((row) => row.map((cell, i) => cell.padEnd(widths[i])).join("  ")).join("\n");
}

/** What a run leaves in each stage's folder for another that resumes it. */
const LEFT = [
  "checkpoint.safetensors",
  "done.json",
  "metrics.jsonl",
  "ranks.jsonl",
  "samples.json",
];

/** Settings of a fresh run are kept for those that resume it; what a run before left goes. */
async function begin(settings: Settings): Promise<void> {
  const { out, resume, rankings } = settings;
  // A person's work should not fail after minutes of the machine's, or find its answers gone.
  if (rankings !== "") {
    await Deno.readTextFile(rankings).catch((error) => {
      throw new Error(`--rankings: cannot read ${rankings}: ${error.message}`);
    });
    if (!resume && await isThere(`${out}/answers.jsonl`)) {
      throw new UsageError(
        `there are answers in ${out} already, which ${rankings} may rank: go on with --resume, or ` +
          "choose another --out to sample anew",
      );
    }
  }
  if (resume) return;
  for (const name of ["sft", "reward", "best-of-n", "ppo", "ppo-ptx"]) {
    for (const file of LEFT) await Deno.remove(`${out}/${name}/${file}`).catch(() => {});
  }
  await Deno.remove(`${out}/answers.jsonl`).catch(() => {});
  await Deno.mkdir(out, { recursive: true });
  await writeWhole(`${out}/settings.json`, `${JSON.stringify(settings, null, 2)}\n`);
}

/** Flags that are of one run alone; a resumed one does not have them from the first. */
const OWN: readonly string[] = ["rankings", "until", "out", "resume"];
/** Flags that a resumed run may change. */
const MAY_CHANGE: readonly string[] = ["device", "klLimit"];

/** What the flags say, or null where they ask for help. A resumed run keeps to its first flags. */
async function parseFlags(args: string[]): Promise<Settings | null> {
  const bad = (message: string): never => {
    throw new UsageError(`${message}; --help lists the flags`);
  };
  // deno-fmt-ignore
  const texts = [
    "rankings", "until", "sft-steps", "prompts", "held-out", "reward-epochs", "ppo-steps", "rollouts", "ppo-lr", "beta",
    "kl-target", "kl-limit", "ptx", "device", "seed", "out",
  ];
  const flags = parseArgs(args, {
    string: texts,
    boolean: ["resume", "help"],
    unknown: (arg: string) => bad(`there is no flag ${arg}`),
  }) as Record<string, unknown>;
  if (flags.help) return null;
  for (const name of texts) {
    if (flags[name] === "" || Array.isArray(flags[name])) bad(`--${name} needs one value`);
  }
  // No `least`: above 0.
  const number = (name: string, otherwise: number, least: number | null): number => {
    const value = Number(flags[name] ?? otherwise);
    if (!((least === null ? value > 0 : value >= least) && value < Infinity)) {
      const range = least === null ? "above 0" : `from ${least} on`;
      bad(`--${name} must be a number ${range}, got "${flags[name]}"`);
    }
    return value;
  };
  const whole = (name: string, otherwise: number, least: number): number => {
    const value = number(name, otherwise, least);
    if (!Number.isSafeInteger(value)) bad(`--${name} must be whole, got "${flags[name]}"`);
    return value;
  };
  const word = <T extends string>(name: string, words: readonly T[]): T => {
    const value = (flags[name] ?? words[0]) as T;
    if (!words.includes(value)) bad(`--${name} must be ${words.join(" or ")}, got "${value}"`);
    return value;
  };
  const settings: Settings = {
    rankings: (flags.rankings ?? "") as string,
    until: word("until", STAGES),
    sftSteps: whole("sft-steps", 30, 1),
    prompts: whole("prompts", 512, 16),
    heldOut: whole("held-out", 64, 4),
    rewardEpochs: whole("reward-epochs", 2, 1),
    ppoSteps: whole("ppo-steps", 7, 1),
    rollouts: whole("rollouts", 64, 2),
    ppoLr: number("ppo-lr", 0.0005, null),
    beta: number("beta", 0.7, 0),
    klTarget: number("kl-target", 6, null),
    klLimit: number("kl-limit", 40, 0),
    ptx: number("ptx", 0.3, 0),
    device: word("device", ["auto", "cpu", "webgpu"]),
    seed: whole("seed", 0, 0),
    out: (flags.out ?? "out/rlhf") as string,
    resume: flags.resume as boolean,
  };
  if (settings.rollouts % 2 !== 0) bad(`--rollouts must be even, got ${settings.rollouts}`);
  return settings.resume ? await resumed(settings, flags) : settings;
}

/** The settings that the run in `--out` began with, but for what may change. */
async function resumed(
  settings: Settings,
  flags: Readonly<Record<string, unknown>>,
): Promise<Settings> {
  const path = `${settings.out}/settings.json`;
  let first: Record<string, unknown>;
  try {
    first = JSON.parse(await Deno.readTextFile(path));
  } catch (error) {
    throw new Error(
      `--resume: cannot read ${path}: ${error instanceof Error ? error.message : error}`,
    );
  }
  const result: Record<string, unknown> = { ...settings };
  for (const [key, value] of Object.entries(first)) {
    if (OWN.includes(key)) continue;
    const flag = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    if (flags[flag] !== undefined && MAY_CHANGE.includes(key)) continue;
    if (flags[flag] !== undefined && result[key] !== value) {
      throw new UsageError(
        `the run in ${settings.out} began with --${flag} ${value}, which --resume cannot change`,
      );
    }
    result[key] = value;
  }
  return result as unknown as Settings;
}

if (import.meta.main) {
  try {
    const settings = await parseFlags(Deno.args);
    if (!settings) console.log(HELP);
    Deno.exit(settings ? await run(settings) : 0);
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(error instanceof UsageError ? 2 : 1);
  }
}

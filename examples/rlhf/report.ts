/**
 * Draws the whole recipe: `report.html` from each stage's `metrics.jsonl`.
 */

import { chart, charts, htmlTable, page, type Series, shown, writeWhole } from "../charts.ts";
import { readMetrics } from "../log.ts";
import type { Samples } from "./ppo.ts";
import { type Figures, isThere } from "./stage.ts";

type Records = readonly Readonly<Record<string, unknown>>[];

const PLAIN = "#dc2626", PTX = "#2563eb";

/** What came of it: a head, and a row for each policy. Needs the figures of `ppo`. */
export function results(summaries: Readonly<Record<string, Figures>>): string[][] {
  const { ppo, "ppo-ptx": ptx, "best-of-n": best } = summaries;
  const start = {
    rule: ppo.rule_before,
    reward: ppo.reward_before,
    kl: ppo.kl_before,
    general_loss: ppo.general_loss_before,
  };
  const signed = (x: number): string => `${x < 0 ? "" : "+"}${x.toFixed(3)}`;
  const row = (name: string, f: Figures, kl = f.kl.toFixed(2)): string[] => [
    name,
    f.rule.toFixed(2),
    ppo.rule_std_before > 0 ? signed((f.rule - start.rule) / ppo.rule_std_before) : "-",
    f.reward.toFixed(2),
    kl,
    f.general_loss.toFixed(3),
    signed(f.general_loss - start.general_loss),
  ];
  const bound = `at most ${best.kl_bound.toFixed(2)}`;
  return [
    ["policy", "rule's score", "rise in deviations", "reward", "KL", "general loss", "its rise"],
    row("fine-tuned", start),
    row(`best of ${best.n}`, { ...start, rule: best.rule, reward: best.reward }, bound),
    row("PPO", ppo),
    ...ptx ? [row("PPO-ptx", ptx)] : [],
  ];
}

/** What the report reads of the settings. */
interface Drawn {
  readonly out: string;
  readonly heldOut: number;
  readonly rollouts: number;
  readonly klTarget: number;
}

/** Writes `report.html` of what has been done so far into `out`; gives its path. */
export async function writeReport(
  { out, heldOut, rollouts, klTarget }: Drawn,
  summaries: Readonly<Record<string, Figures>>,
): Promise<string> {
  const of = async (stage: string): Promise<Records> => {
    const path = `${out}/${stage}/metrics.jsonl`;
    return await isThere(path) ? await readMetrics(path) : [];
  };
  const [sft, reward, ppo, ptx] = [
    await of("sft"),
    await of("reward"),
    await of("ppo"),
    await of("ppo-ptx"),
  ];
  const both = (title: string, key: string, marks = false, more: readonly Series[] = []): string =>
    chart(title, [
      { name: "PPO-ptx", points: points(ptx, key), color: PTX, marks },
      { name: "PPO", points: points(ppo, key), color: PLAIN, marks },
      ...more,
    ]);
  const one = (title: string, records: Records, keys: Record<string, string>): string =>
    chart(
      title,
      Object.entries(keys).map(([key, name], i): Series => ({
        name,
        points: points(records, key),
        color: [PTX, PLAIN][i],
        marks: key.startsWith("eval"),
      })),
    );
  const target: Series = {
    name: "target",
    points: points([...ppo, ...ptx], "objective/kl").map(([step]) => [step, klTarget]),
    color: "#6b7280",
    thin: true,
  };
  const section = (title: string, note: string, content: string): string[] =>
    content === "" ? [] : [`<h2>${title}</h2>`, `<p>${note}</p>`, content];
  const body = [
    ...section(
      "Results",
      `On ${heldOut} prompts that nothing was trained on. The rule counts cheerful words and takes ` +
        "off the gloomy ones, each once; its rise is given in the standard deviations of the " +
        "fine-tuned model's scores. The reward is the reward model's score, which the books' own " +
        "sentences have 0 of in the mean. KL is to the fine-tuned model, in nats an answer. General " +
        "loss is on other books, in nats a token: where it rises, the policy forgets.",
      summaries.ppo ? htmlTable(results(summaries).slice(1), results(summaries)[0]) : "",
    ),
    ...section(
      "Answers",
      "To the first of the prompts, always with the same random draws.",
      await answersTable(out),
    ),
    ...section(
      "PPO, with and without PPO-ptx",
      `A step is a rollout of ${rollouts} answers, learnt from in two epochs of two minibatches.`,
      charts([
        both("Reward (the reward model's score, less missing-end penalty)", "objective/scores"),
        both("The rule's score of the rollouts", "objective/rule"),
        both("The rule's score on held-out prompts", "rule", true),
        both("KL to the fine-tuned model (nats an answer)", "objective/kl", false, [target]),
        both("Entropy (nats a token)", "policy/entropy"),
        both("Loss on general text (nats a token)", "general_loss", true),
        both("Coefficient of the KL penalty", "kl_coefficient"),
        both("Value loss", "loss/value"),
        both("Share of clipped tokens", "policy/clipfrac"),
      ]),
    ),
    ...section(
      "Fine-tuning and reward model",
      "Marks are measured on what is held out. Of a pair, the better answer should score higher: " +
        "0.5 is chance.",
      charts([
        one("SFT: loss (nats a token)", sft, { loss: "training", eval_loss: "held out" }),
        one("Reward model: loss", reward, { loss: "training" }),
        one("Reward model: share of pairs ranked right", reward, {
          accuracy: "training",
          eval_accuracy: "held out",
        }),
      ]),
    ),
    "<h2>Summary</h2>",
    htmlTable(
      Object.entries(summaries).flatMap(([stage, figures]) =>
        Object.entries(figures).map(([key, value]) => [`${stage}: ${key}`, shown(value)])
      ),
    ),
  ];
  const path = `${out}/report.html`;
  await writeWhole(path, page("Reinforcement learning from ranked answers", body.join("\n")));
  return path;
}

/** Answers to a few prompts before PPO and after; nothing where there are none. */
async function answersTable(out: string): Promise<string> {
  const of = async (stage: string): Promise<Samples | null> => {
    const path = `${out}/${stage}/samples.json`;
    return await isThere(path) ? JSON.parse(await Deno.readTextFile(path)) : null;
  };
  const ppo = await of("ppo"), ptx = await of("ppo-ptx");
  if (!ppo) return "";
  const columns: [string, readonly string[]][] = [
    ["prompt", ppo.prompts],
    ["fine-tuned", ppo.first],
    ["PPO", ppo.last],
    ...ptx ? [["PPO-ptx", ptx.last] as [string, readonly string[]]] : [],
  ];
  const rows = ppo.prompts.map((_, i) => columns.map(([, texts]) => texts[i]));
  return htmlTable(rows, columns.map(([name]) => name));
}

function points(records: Records, key: string): [number, number][] {
  return records.flatMap((record) => {
    const { step, [key]: value } = record;
    return typeof step === "number" && typeof value === "number" ? [[step, value]] : [];
  });
}

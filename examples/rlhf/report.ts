/**
 * Draws the whole recipe: `report.html` from each stage's `metrics.jsonl`.
 */

import { chart, charts, htmlTable, page, type Series, shown, writeWhole } from "../charts.ts";
import { readMetrics } from "../log.ts";
import { type Figures, isThere } from "./stage.ts";

type Records = readonly Readonly<Record<string, unknown>>[];

const PLAIN = "#dc2626", PTX = "#2563eb";

/** Writes `report.html` into `out`, with a table of results on top; gives its path. */
export async function writeReport(
  out: string,
  results: readonly (readonly string[])[],
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
  const both = (title: string, key: string, marks = false): string =>
    chart(title, [
      { name: "PPO-ptx", points: points(ptx, key), color: PTX, marks },
      { name: "PPO", points: points(ppo, key), color: PLAIN, marks },
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
  const body = [
    "<h2>Results</h2>",
    htmlTable(results.slice(1), results[0]),
    "<h2>PPO, with and without PPO-ptx</h2>",
    charts([
      both("Reward (the reward model's score, less missing-end penalty)", "objective/scores"),
      both("The rule's score of the rollouts", "objective/rule"),
      both("The rule's score on held-out prompts", "rule", true),
      both("KL to the reference (nats an answer)", "objective/kl"),
      both("Entropy (nats a token)", "policy/entropy"),
      both("Loss on general text (nats a token)", "general_loss", true),
      both("Coefficient of the KL penalty", "kl_coefficient"),
      both("Value loss", "loss/value"),
      both("Share of clipped tokens", "policy/clipfrac"),
    ]),
    "<h2>Fine-tuning and reward model</h2>",
    charts([
      one("SFT: loss (nats a token)", sft, { loss: "training", eval_loss: "held out" }),
      one("Reward model: loss", reward, { loss: "training" }),
      one("Reward model: pairs ranked right", reward, {
        accuracy: "training",
        eval_accuracy: "held out",
      }),
    ]),
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

function points(records: Records, key: string): [number, number][] {
  return records.flatMap((record) => {
    const { step, [key]: value } = record;
    return typeof step === "number" && typeof value === "number" ? [[step, value]] : [];
  });
}

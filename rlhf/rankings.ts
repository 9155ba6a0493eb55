/**
 * Files in which a person ranks answers: JSON, one object a line.
 *
 * @module
 */

import { readText } from "../nn/models/pretrained.ts";

/** A prompt whose answers were given out to be ranked. */
export interface AnswersToRank {
  /** What a ranking calls the prompt. */
  readonly id: string;
  /** The answers, in the order in which a ranking has them. */
  readonly answers: readonly unknown[];
}

/**
 * Reads rankings, a line for each prompt: `{"id": "prompt-0", "ranks": [0, 2, 1, 2]}`. Each answer has a
 * rank, in the order of the prompt's answers; lower is better, and answers of one rank tie. Prompts may
 * be left out; gives the ranks by the prompts' ids, for `RankedAnswers`.
 *
 * Throws an `Error` that names the file and the line where an id is unknown or stands twice, a rank is
 * missing or is no number, or the line is no JSON object; and where no prompt is ranked, or all answers to
 * each tie, so that there is nothing to learn.
 *
 * @example
 * ```ts
 * import { readRankings } from "@graft/ml/rlhf";
 *
 * const path = `${await Deno.makeTempDir()}/rankings.jsonl`;
 * // The second answer is best, the others are alike.
 * await Deno.writeTextFile(path, '{"id": "prompt-0", "ranks": [1, 0, 1]}\n');
 * const asked = [{ id: "prompt-0", answers: ["...", "The sun rose.", "?"] }];
 * console.log((await readRankings(path, asked)).get("prompt-0")); // [1, 0, 1]
 * ```
 */
export async function readRankings(
  path: string,
  asked: readonly AnswersToRank[],
): Promise<Map<string, readonly number[]>> {
  const counts = new Map(asked.map(({ id, answers }) => [id, answers.length]));
  const found = new Map<string, readonly number[]>();
  const lines = (await readText("read rankings", path)).split("\n");
  lines.forEach((line, i) => {
    if (line.trim() === "") return;
    const where = `read rankings: ${path} line ${i + 1}`;
    const { id, ranks } = parseLine(line, where);
    const count = counts.get(id);
    if (count === undefined) {
      throw new Error(`${where}: there is no prompt ${JSON.stringify(id)} among those to rank`);
    }
    if (found.has(id)) throw new Error(`${where}: prompt ${JSON.stringify(id)} stands twice`);
    if (ranks.length !== count) {
      throw new Error(
        `${where}: prompt ${JSON.stringify(id)} has ${count} answers, and ${ranks.length} ranks`,
      );
    }
    found.set(id, ranks);
  });
  if (found.size === 0) throw new Error(`read rankings: ${path} ranks no prompt`);
  if (![...found.values()].some((ranks) => new Set(ranks).size > 1)) {
    throw new Error(
      `read rankings: ${path}: all answers to each prompt tie, so there is nothing to learn`,
    );
  }
  return found;
}

function parseLine(line: string, where: string): { id: string; ranks: number[] } {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw new SyntaxError(`${where} is not JSON: ${(error as Error).message}`);
  }
  const { id, ranks } = (value ?? {}) as { id?: unknown; ranks?: unknown };
  if (typeof id !== "string" || !Array.isArray(ranks)) {
    throw new TypeError(`${where}: needs id, the prompt's, and ranks, a number for each answer`);
  }
  const at = ranks.findIndex((rank) => typeof rank !== "number" || !Number.isFinite(rank));
  if (at >= 0) {
    throw new TypeError(
      `${where}: the rank of answer ${at} must be a number, is ${JSON.stringify(ranks[at])}`,
    );
  }
  return { id, ranks };
}

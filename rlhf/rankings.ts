/**
 * Files in which a person ranks answers: what is to be ranked, and the rankings. JSON, one object a line.
 *
 * @module
 */

import { writeAtomically } from "../core/files.ts";
import { readText } from "../nn/models/pretrained.ts";

/** One of several answers to a prompt. */
export interface Candidate {
  /** Its name in a ranking: any text, another for each answer to the prompt. */
  readonly id: string;
  /** The answer. */
  readonly text: string;
}

/** A prompt and the answers to be ranked. */
export interface Candidates {
  /** The prompt's name in a ranking, another for each prompt. */
  readonly prompt_id: string;
  /** The prompt. */
  readonly prompt: string;
  /** Two answers or more. */
  readonly answers: readonly Candidate[];
}

/** How the answers to a prompt were ranked. */
export interface Ranking {
  /** What was ranked. */
  readonly candidates: Candidates;
  /** The rank of each answer, in their order, from 0 for the best; answers that tie have the same. */
  readonly ranks: readonly number[];
}

/**
 * Writes what is to be ranked, a line for each prompt:
 * `{"prompt_id": "1", "prompt": "...", "answers": [{"id": "a", "text": "..."}, ...]}`. The file is whole,
 * or what it was before.
 *
 * Throws an `Error` where a prompt has fewer than two answers, a name stands twice, or the file cannot be
 * written.
 *
 * @example
 * ```ts
 * import { readCandidates, readRankings, writeCandidates } from "@graft/ml/rlhf";
 *
 * const folder = await Deno.makeTempDir();
 * await writeCandidates(`${folder}/answers.jsonl`, [{
 *   prompt_id: "1",
 *   prompt: "Once upon a time",
 *   answers: [{ id: "a", text: "..." }, { id: "b", text: "the sun rose." }, { id: "c", text: "?" }],
 * }]);
 * // A person ranks: b is best, a and c are alike.
 * await Deno.writeTextFile(
 *   `${folder}/rankings.jsonl`,
 *   '{"prompt_id": "1", "ranking": ["b", ["a", "c"]]}\n',
 * );
 * const candidates = await readCandidates(`${folder}/answers.jsonl`);
 * const [{ ranks }] = await readRankings(`${folder}/rankings.jsonl`, candidates);
 * console.log(ranks); // [1, 0, 1]
 * ```
 */
export async function writeCandidates(
  path: string,
  candidates: readonly Candidates[],
): Promise<void> {
  const seen = new Set<string>();
  candidates.forEach((item, i) => checkCandidates(`write answers: prompt ${i + 1}`, item, seen));
  const text = candidates.map((item) => `${JSON.stringify(item)}\n`).join("");
  await writeAtomically(path, (file) => file.write(new TextEncoder().encode(text)));
}

/**
 * Reads what {@linkcode writeCandidates} wrote.
 *
 * Throws an `Error` that names the file and the line where one is no such thing, or a name stands twice.
 */
export async function readCandidates(path: string): Promise<Candidates[]> {
  const seen = new Set<string>();
  return await readLines("read answers", path, (value, where) => {
    const item = value as Partial<Candidates>;
    const isCandidate = (a: unknown): boolean =>
      typeof (a as Candidate)?.id === "string" && typeof (a as Candidate).text === "string";
    const isWhole = typeof item.prompt_id === "string" && typeof item.prompt === "string" &&
      Array.isArray(item.answers) && item.answers.every(isCandidate);
    if (!isWhole) {
      throw new TypeError(
        `${where}: needs prompt_id and prompt, both text, and a list answers of { id, text }`,
      );
    }
    checkCandidates(where, item as Candidates, seen);
    return item as Candidates;
  });
}

/**
 * Reads rankings, a line for each prompt, best answer first: `{"prompt_id": "1", "ranking": ["b", "a",
 * "c"]}`. Answers in a list within the ranking tie: `["b", ["a", "c"]]`. Every answer to the prompt has to
 * be ranked; prompts may be left out.
 *
 * Throws an `Error` that names the file and the line where a prompt or answer is unknown, stands twice or
 * is missing, or the line is no ranking, or no prompt is ranked at all.
 */
export async function readRankings(
  path: string,
  candidates: readonly Candidates[],
): Promise<Ranking[]> {
  const known = new Map(candidates.map((item) => [item.prompt_id, item]));
  const lineOf = new Set<string>();
  return await readLines("read rankings", path, (value, where) => {
    const { prompt_id: id, ranking } = value as { prompt_id?: unknown; ranking?: unknown };
    if (typeof id !== "string" || !Array.isArray(ranking)) {
      throw new TypeError(`${where}: needs prompt_id, a text, and ranking, a list of answers' ids`);
    }
    const item = known.get(id);
    if (!item) {
      throw new Error(`${where}: there is no prompt ${JSON.stringify(id)} among those to rank`);
    }
    if (lineOf.has(id)) throw new Error(`${where}: prompt ${JSON.stringify(id)} stands twice`);
    lineOf.add(id);
    return { candidates: item, ranks: ranksOf(where, item, ranking) };
  });
}

function ranksOf(where: string, { answers }: Candidates, ranking: readonly unknown[]): number[] {
  const ranks = new Map<string, number>();
  const ids = answers.map(({ id }) => id);
  ranking.forEach((place, rank) => {
    for (const id of Array.isArray(place) ? place : [place]) {
      if (!ids.includes(id)) {
        throw new Error(
          `${where}: there is no answer ${JSON.stringify(id)}; the prompt's are ${ids.join(", ")}`,
        );
      }
      if (ranks.has(id)) throw new Error(`${where}: answer ${JSON.stringify(id)} stands twice`);
      ranks.set(id, rank);
    }
  });
  const missing = ids.filter((id) => !ranks.has(id));
  if (missing.length > 0) {
    throw new Error(
      `${where}: the ranking lacks ${
        missing.join(", ")
      }; answers that are equally good stand in a ` +
        "list of their own",
    );
  }
  return ids.map((id) => ranks.get(id)!);
}

function checkCandidates(
  where: string,
  { prompt_id, answers }: Candidates,
  seen: Set<string>,
): void {
  if (seen.has(prompt_id)) {
    throw new Error(`${where}: prompt_id ${JSON.stringify(prompt_id)} stands twice`);
  }
  seen.add(prompt_id);
  if (answers.length < 2) {
    throw new Error(`${where}: needs 2 answers or more to rank, has ${answers.length}`);
  }
  const ids = answers.map(({ id }) => id);
  const double = ids.find((id, i) => ids.indexOf(id) !== i);
  if (double !== undefined) {
    throw new Error(`${where}: answer ${JSON.stringify(double)} stands twice`);
  }
}

/** Every line that is not empty, parsed; `where` names file and line. */
async function readLines<T>(
  operation: string,
  path: string,
  parse: (value: object, where: string) => T,
): Promise<T[]> {
  const lines = (await readText(operation, path)).split("\n");
  const items: T[] = [];
  lines.forEach((line, i) => {
    if (line.trim() === "") return;
    const where = `${operation}: ${path} line ${i + 1}`;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      throw new SyntaxError(`${where} is not JSON: ${(error as Error).message}`);
    }
    if (typeof value !== "object" || value === null) {
      throw new TypeError(`${where}: needs a JSON object`);
    }
    items.push(parse(value, where));
  });
  if (items.length === 0) throw new Error(`${operation}: ${path} has no line`);
  return items;
}

/**
 * `config.json` and `generation_config.json` as they were read, and as they are written again.
 *
 * @module
 */

import { isThere, parseJson, readText } from "./pretrained.ts";

/** A file of settings. */
export interface ConfigFile {
  /** Where it stands. */
  readonly path: string;
  /** All of it. */
  readonly text: string;
  /** Parsed. */
  readonly config: Readonly<Record<string, unknown>>;
}

/**
 * Reads `config.json` of a model's folder.
 *
 * Throws an `Error` that names the file where it is missing or no JSON object.
 */
export async function modelConfig(folder: string): Promise<ConfigFile> {
  return await configFile(`${folder}/config.json`);
}

/**
 * Reads `generation_config.json` of a model's folder; null where there is none.
 *
 * Throws an `Error` that names the file where it is no JSON object.
 */
export async function generationConfig(folder: string): Promise<ConfigFile | null> {
  const path = `${folder}/generation_config.json`;
  return await isThere(path) ? await configFile(path) : null;
}

async function configFile(path: string): Promise<ConfigFile> {
  const text = await readText("load model", path);
  return { path, text, config: parseJson("load model", path, text) };
}

/**
 * The text of a `config.json` that says `config`. What `file` says too stays as it is written there, to
 * the digits of its numbers, and so does its order.
 */
export function configText(file: ConfigFile | null, config: Record<string, unknown>): string {
  if (file === null) return format(sorted(config));
  const same = (key: string): boolean =>
    JSON.stringify(file.config[key]) === JSON.stringify(config[key]);
  const keys = new Set([...Object.keys(file.config), ...Object.keys(config)]);
  if ([...keys].every(same)) return file.text;
  const exact = parseExact(file.text);
  const all: Record<string, unknown> = {};
  for (const key of keys) if (key in config) all[key] = same(key) ? exact[key] : config[key];
  return format(all);
}

/** `num_labels` as files say it: by the names of the labels. */
export function withLabels(given: Readonly<Record<string, unknown>>): Record<string, unknown> {
  const { num_labels: count, ...config } = given;
  if (typeof count !== "number" || labelCount({ id2label: config.id2label }) === count) {
    return config;
  }
  const labels = Array.from({ length: count }, (_, i) => `LABEL_${i}`);
  return {
    ...config,
    id2label: Object.fromEntries(labels.map((label, i) => [i, label])),
    label2id: Object.fromEntries(labels.map((label, i) => [label, i])),
  };
}

/** How many labels a configuration names: num_labels, or the names of id2label, or 2. */
export function labelCount(config: Readonly<Record<string, unknown>>): number {
  const { num_labels: count, id2label: names } = config;
  if (typeof count === "number") return count;
  return typeof names === "object" && names !== null ? Object.keys(names).length : 2;
}

function format(config: Record<string, unknown>): string {
  return `${JSON.stringify(config, null, 2)}\n`;
}

/** Keys in the order that Hugging Face writes. */
function sorted(config: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(config).sort(([a], [b]) => a < b ? -1 : 1));
}

/** Parses JSON such that its numbers are written again as they stand: 1e-05, 10000.0. */
function parseExact(text: string): Record<string, unknown> {
  const { rawJSON } = JSON as unknown as { rawJSON?: (text: string) => unknown };
  // A runtime without it writes the same numbers in its own way.
  if (rawJSON === undefined) return JSON.parse(text);
  const reviver = (_key: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === "number" && context?.source !== undefined ? rawJSON(context.source) : value;
  return JSON.parse(text, reviver as (this: unknown, key: string, value: unknown) => unknown);
}

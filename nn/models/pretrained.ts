/**
 * Folders of Hugging Face's layout.
 *
 * @module
 */

import { openForReading } from "../../core/files.ts";
import { openSafetensors } from "../../core/safetensors.ts";

/** Reads all of a text file; the error names the file. */
export async function readText(operation: string, path: string): Promise<string> {
  const file = await openForReading(operation, path);
  try {
    const bytes = new Uint8Array((await file.stat()).size);
    for (let at = 0; at < bytes.length;) {
      const count = await file.read(bytes.subarray(at));
      if (count === null) break;
      at += count;
    }
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } finally {
    file.close();
  }
}

/** Parses a JSON object; the error names the file. */
export function parseJson(operation: string, path: string, text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`${operation}: ${path} is not JSON: ${(error as Error).message}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new TypeError(`${operation}: ${path} needs a JSON object`);
  }
  return value as Record<string, unknown>;
}

/** Reads and parses a JSON object; the error names the file. */
export async function readJson(
  operation: string,
  path: string,
): Promise<Record<string, unknown>> {
  return parseJson(operation, path, await readText(operation, path));
}

/** The weights of a model's folder. */
export interface Weights {
  /** One safetensors file, or the parts of one. */
  readonly paths: string[];
  /** The keys in them. */
  readonly keys: string[];
}

/**
 * The safetensors files of a model's folder: `model.safetensors`, or the parts that
 * `model.safetensors.index.json` names.
 *
 * Throws an `Error` that names the file where one is missing or broken, and lists the tensors that the
 * index names and its parts do not hold.
 */
export async function weightFiles(folder: string): Promise<Weights> {
  const operation = "load model";
  const whole = `${folder}/model.safetensors`;
  if (await isThere(whole)) return { paths: [whole], keys: await keysOf(whole) };
  const path = `${whole}.index.json`;
  if (!await isThere(path)) {
    throw new Error(
      `${operation}: needs ${whole} or ${path}, and neither can be opened` +
        await pickledHint(folder, "pytorch_model", "the model with transformers"),
    );
  }
  const { weight_map: map } = await readJson(operation, path);
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw new TypeError(`${operation}: ${path} needs an object weight_map`);
  }
  const parts = new Map<string, string[]>();
  for (const [key, name] of Object.entries(map)) {
    // A part stands beside its index, nowhere else.
    if (typeof name !== "string" || name === "" || /[\\/]/.test(name)) {
      throw new TypeError(
        `${operation}: ${path} needs a file name for "${key}", has ${JSON.stringify(name)}`,
      );
    }
    parts.set(name, [...parts.get(name) ?? [], key]);
  }
  const missing: string[] = [];
  for (const name of parts.keys()) if (!await isThere(`${folder}/${name}`)) missing.push(name);
  if (missing.length > 0) {
    throw new Error(
      `${operation}: ${folder} lacks ${missing.join(", ")}, which ${path} names as ` +
        `${missing.length === 1 ? "a part" : "parts"} of the weights`,
    );
  }
  const keys: string[] = [];
  const absent: string[] = [];
  for (const [name, named] of parts) {
    const there = new Set(await keysOf(`${folder}/${name}`));
    keys.push(...there);
    for (const key of named) if (!there.has(key)) absent.push(`${key} (in ${name})`);
  }
  if (absent.length > 0) {
    throw new Error(
      `${operation}: ${path} names tensors that are not there:\n  ${absent.join("\n  ")}`,
    );
  }
  return { paths: [...parts.keys()].sort().map((name) => `${folder}/${name}`), keys };
}

/** What to do where a folder holds weights in PyTorch's own form alone, or nothing. */
export async function pickledHint(folder: string, name: string, what: string): Promise<string> {
  for (const file of [`${name}.bin`, `${name}.bin.index.json`]) {
    if (!await isThere(`${folder}/${file}`)) continue;
    return `; ${file} is there, which only Python reads: load ${what} and save it again (save_pretrained)`;
  }
  return "";
}

/** Whether a file can be opened there. */
export async function isThere(path: string): Promise<boolean> {
  try {
    (await openForReading("load model", path)).close();
    return true;
  } catch {
    return false;
  }
}

async function keysOf(path: string): Promise<string[]> {
  const file = await openSafetensors(path);
  file.close();
  return [...file.names];
}

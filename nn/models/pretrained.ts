/**
 * Folders of Hugging Face's layout.
 *
 * @module
 */

import { openForReading } from "../../core/files.ts";

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

/** Reads and parses a JSON object; the error names the file. */
export async function readJson(
  operation: string,
  path: string,
): Promise<Record<string, unknown>> {
  const text = await readText(operation, path);
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

/** `config.json` of a model's folder, and its path. */
export async function pretrainedConfig(
  folder: string,
): Promise<{ config: Record<string, unknown>; path: string }> {
  const path = `${folder}/config.json`;
  return { config: await readJson("load model", path), path };
}

/** The safetensors files of a model's folder: one, or the parts its index names. */
export async function weightFiles(folder: string): Promise<string[]> {
  const whole = `${folder}/model.safetensors`;
  try {
    (await openForReading("load model", whole)).close();
    return [whole];
  } catch (error) {
    const index = await readJson("load model", `${whole}.index.json`).catch(() => null);
    const map = index?.weight_map;
    if (typeof map !== "object" || map === null) throw error;
    return [...new Set(Object.values(map as Record<string, string>))].sort()
      .map((name) => `${folder}/${name}`);
  }
}

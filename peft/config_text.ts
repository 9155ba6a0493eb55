/**
 * `adapter_config.json` as a text: as Python writes it, and one that was read as it was written.
 *
 * @module
 */

/** Python writes these with a point, whole or not. */
const FLOATS: readonly string[] = [
  "lora_dropout",
  "encoder_dropout",
  "eva_config.rho",
  "eva_config.tau",
];

/** Begins a number's text in place of the number; no text of a file does. */
const MARK = "\u0000";

/** Keys that no file can have, for what JSON forgets. A spread keeps them. */
const SOURCE = Symbol("the file's text"), WRITTEN = Symbol("how the file had it");

/** What of a file is not in the values that it gave. */
interface Written {
  /** The text of each number, by its path: 16.0 and 1e-05 are other texts than 16 and 0.00001. */
  readonly numbers: ReadonlyMap<string, string>;
  /** Keys that the file left out, with what filled them, as JSON: left out again if it still does. */
  readonly filled: ReadonlyMap<string, string>;
}

/** Remembers the text that a configuration was parsed from. */
export function fromText<C extends object>(config: C, text: string): C {
  return Object.assign(config, { [SOURCE]: text });
}

/** Gives `resolved`, which was made from `config`, what {@linkcode formatConfig} needs of its file. */
export function asWritten<R extends object>(config: object, resolved: R): R {
  const text = (config as { [SOURCE]?: string })[SOURCE];
  if (text === undefined) return resolved;
  const marked = (_: string, value: unknown, context?: { source?: string }): unknown =>
    typeof value === "number" ? `${MARK}${context?.source ?? value}` : value;
  const exact = JSON.parse(text, marked as (this: unknown, key: string, value: unknown) => unknown);
  const numbers = new Map<string, string>();
  const visit = (value: unknown, path: string): void => {
    if (typeof value === "string" && value.startsWith(MARK)) numbers.set(path, value.slice(1));
    if (typeof value !== "object" || value === null) return;
    for (const [key, inner] of Object.entries(value)) visit(inner, below(path, key));
  };
  visit(exact, "");
  const filled = new Map(
    Object.entries(resolved).flatMap(([key, value]) =>
      Object.hasOwn(config, key) ? [] : [[key, JSON.stringify(value)] as const]
    ),
  );
  return Object.assign(resolved, { [WRITTEN]: { numbers, filled } satisfies Written });
}

/**
 * The text of `adapter_config.json`: keys sorted, two spaces, as Python's `json.dumps` writes it. One
 * that was read from a file is the same to the byte where nothing was changed.
 */
export function formatConfig(config: Readonly<Record<string, unknown>>): string {
  const written = (config as { [WRITTEN]?: Written })[WRITTEN];
  const number = (value: number, path: string): unknown => {
    const text = written?.numbers.get(path);
    if (text !== undefined && Number(text) === value) return MARK + text;
    return FLOATS.includes(path) && Number.isInteger(value) ? `${MARK}${value}.0` : value;
  };
  const sorted = (value: unknown, path: string): unknown => {
    if (typeof value === "number") return number(value, path);
    if (Array.isArray(value)) return value.map((inner, i) => sorted(inner, below(path, `${i}`)));
    if (typeof value !== "object" || value === null) return value;
    const entries = Object.entries(value).map(([key, inner]) =>
      [key, sorted(inner, below(path, key))] as const
    );
    return Object.fromEntries(entries.sort(([a], [b]) => a < b ? -1 : 1));
  };
  const isFilled = ([key, value]: [string, unknown]): boolean =>
    written?.filled.get(key) === JSON.stringify(value) && value !== undefined;
  const kept = Object.fromEntries(Object.entries(config).filter((entry) => !isFilled(entry)));
  return JSON.stringify(sorted(kept, ""), null, 2)
    .replace(/"\\u0000([^"]*)"/g, "$1")
    .replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function below(path: string, key: string): string {
  return path === "" ? key : `${path}.${key}`;
}

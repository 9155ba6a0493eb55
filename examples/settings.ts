/**
 * What a run of `deno task train` is told: by flags, by a file, by another program.
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";
import type { DeviceName } from "@graft/ml";
import { checkpointProgress } from "@graft/ml/optim";

/** The ways to train. */
export const METHODS = ["lora", "dora", "prompt", "ptuning-v2", "full"] as const;

/** A way to train. */
export type Method = typeof METHODS[number];

/** How `docs/train.md` found them: AdamW, constant after warm-up, on the default task. */
export const LEARNING_RATES: Readonly<Record<Method, number>> = {
  "lora": 0.001,
  "dora": 0.001,
  "prompt": 0.15,
  "ptuning-v2": 0.09,
  "full": 0.00015,
};

/** A run's settings; each has a flag and a key of the same name in a file. */
export interface Settings {
  readonly method: Method;
  readonly model: string;
  readonly rank: number;
  readonly alpha: number;
  readonly target: string;
  readonly quantize: "none" | "int8" | "nf4";
  readonly virtualTokens: number;
  readonly data: string;
  readonly device: DeviceName;
  readonly steps: number;
  readonly batch: number;
  /** Null: as long as the model allows, up to 256. */
  readonly seq: number | null;
  readonly lr: number;
  readonly mix: number;
  readonly seed: number;
  readonly evalEvery: number;
  readonly sample: number;
  readonly out: string;
  readonly resume: boolean;
}

/** The flags of {@linkcode Settings}, but for `resume`, which no file sets. */
// deno-fmt-ignore
export const FLAGS: readonly string[] = [
  "method", "model", "rank", "alpha", "target", "quantize", "virtual-tokens", "data", "device",
  "steps", "batch", "seq", "lr", "mix", "seed", "eval-every", "sample", "out",
];

/** What a resumed run may be told anew. */
const MAY_CHANGE = ["steps", "device", "out", "eval-every", "sample"];

/** Flags or a file of settings that cannot be: exit code 2. */
export class UsageError extends Error {}

/** Values by flag, and how messages name each: `--rank`, or `best.json: "rank"`. */
export type Given = ReadonlyMap<string, { readonly value: unknown; readonly label: string }>;

/**
 * Reads a command line of flags with one value each, and of `switches` without; `--config FILE` brings
 * the values that no flag gives.
 *
 * Throws a `UsageError` on a flag that is not there, or has no value.
 */
export async function readFlags(
  args: readonly string[],
  flags: readonly string[],
  switches: readonly string[],
): Promise<{ given: Given; on: ReadonlySet<string> }> {
  const bad = (message: string): never => {
    throw new UsageError(`${message}; --help lists the flags`);
  };
  const parsed = parseArgs([...args], {
    string: [...flags, "config"],
    boolean: [...switches],
    // The parser also gives an empty value here, which its flag has got.
    unknown: (arg: string) => arg !== "" && bad(`there is no flag ${arg}`),
  }) as Record<string, unknown>;
  const on = new Set(switches.filter((name) => parsed[name] === true));
  const given = new Map<string, { value: unknown; label: string }>();
  for (const name of ["config", ...flags]) {
    const value = parsed[name];
    if (value === undefined) continue;
    if (value === "" || Array.isArray(value)) bad(`--${name} needs one value`);
    if (name === "config") {
      for (const [key, one] of await readConfig(value as string, flags)) given.set(key, one);
    } else given.set(name, { value, label: `--${name}` });
  }
  return { given, on };
}

/** The values of a file of settings: a JSON object whose keys are flags without their dashes. */
async function readConfig(path: string, flags: readonly string[]): Promise<Given> {
  let config: unknown;
  try {
    config = JSON.parse(await Deno.readTextFile(path));
  } catch (error) {
    throw new UsageError(`--config ${path}: ${error instanceof Error ? error.message : error}`);
  }
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new UsageError(`--config ${path}: needs a JSON object of settings`);
  }
  return givenBy(config as Record<string, unknown>, `${path}: `, flags);
}

/** Settings as a program gives them, by the names of the flags. */
function givenBy(
  values: Readonly<Record<string, unknown>>,
  source: string,
  flags: readonly string[],
): Given {
  return new Map(
    Object.entries(values).map(([key, value]) => {
      if (!flags.includes(key)) {
        throw new UsageError(
          `${source}there is no setting ${JSON.stringify(key)}; there are ${flags.join(", ")}`,
        );
      }
      return [key, { value, label: `${source}"${key}"` }] as const;
    }),
  );
}

/**
 * Settings from a record by the names of the flags, as a file has them, with the defaults of the rest.
 *
 * Throws a `UsageError` that names the key at fault.
 */
export function settingsFrom(values: Readonly<Record<string, unknown>>): Settings {
  return settingsOf(givenBy(values, "settings: ", FLAGS));
}

/** Fills in the defaults and checks every value. Throws a `UsageError` that names the one at fault. */
export function settingsOf(given: Given, resume: boolean = false): Settings {
  const refuse = (name: string, what: string): never => {
    const { value, label } = given.get(name)!;
    const shown = typeof value === "string" ? `"${value}"` : JSON.stringify(value);
    throw new UsageError(`${label} must be ${what}, got ${shown}`);
  };
  // No `least`: above 0.
  const number = (
    name: string,
    otherwise: number,
    least: number | null,
    most = Infinity,
  ): number => {
    const { value = otherwise, label = "" } = given.get(name) ?? {};
    const isFlag = label.startsWith("--");
    const result = isFlag ? Number(value) : value as number;
    const isIn = typeof result === "number" && result <= most &&
      (least === null ? result > 0 : result >= least);
    if (!isIn) {
      const from = least === null ? "above 0" : `from ${least}`;
      refuse(
        name,
        `a number ${from}${most < Infinity ? ` to ${most}` : least === null ? "" : " on"}`,
      );
    }
    return result;
  };
  const whole = (name: string, otherwise: number, least: number, most?: number): number => {
    const value = number(name, otherwise, least, most);
    if (!Number.isSafeInteger(value)) refuse(name, "whole");
    return value;
  };
  const text = (name: string, otherwise: string): string => {
    const value = given.get(name)?.value ?? otherwise;
    if (typeof value !== "string") refuse(name, "a text");
    return value as string;
  };
  const word = <T extends string>(name: string, words: readonly T[]): T => {
    const value = text(name, words[0]);
    if (!words.includes(value as T)) refuse(name, words.join(" or "));
    return value as T;
  };
  const names = (name: string, otherwise: string): string => {
    const value = given.get(name)?.value ?? otherwise;
    const isList = Array.isArray(value) && value.length > 0 &&
      value.every((one) => typeof one === "string");
    return isList ? value.join(",") : text(name, otherwise);
  };
  const method = word("method", METHODS);
  const quantize = word("quantize", ["none", "int8", "nf4"]);
  if (quantize !== "none" && method === "full") {
    throw new UsageError(
      `${
        given.get("quantize")!.label
      } packs weights, which are then frozen: --method full trains them`,
    );
  }
  return {
    method,
    model: text("model", "stories15M"),
    rank: whole("rank", 32, 1),
    alpha: number("alpha", 64, null),
    target: names("target", "all-linear"),
    quantize,
    virtualTokens: whole("virtual-tokens", 16, 1),
    data: text("data", ""),
    device: word("device", ["auto", "cpu", "webgpu"]),
    steps: whole("steps", 60, 1),
    batch: whole("batch", 4, 1),
    seq: given.has("seq") ? whole("seq", 256, 2) : null,
    lr: number("lr", LEARNING_RATES[method], null),
    mix: number("mix", 0, 0, 0.99),
    seed: whole("seed", 0, 0),
    evalEvery: whole("eval-every", 20, 0),
    sample: whole("sample", 80, 0),
    out: text("out", "out/train"),
    resume,
  };
}

/**
 * How much of this machine a run is to use: its devices, and the threads of each on the CPU (undefined:
 * a share of the cores). No settings, for they change nothing but the time.
 *
 * Throws a `UsageError` where one is no whole number.
 */
export function machineOf(given: Given): { devices: number; threads: number | undefined } {
  const whole = (name: string): number | undefined => {
    const { value, label } = given.get(name) ?? {};
    if (value === undefined) return undefined;
    const n = Number(value);
    if (Number.isSafeInteger(n) && n > 0) return n;
    throw new UsageError(`${label} must be a whole number from 1 on, got "${value}"`);
  };
  return { devices: whole("devices") ?? 1, threads: whole("threads") };
}

/** Where the checkpoint of the run in `out` is. */
export function checkpointOf(out: string): string {
  return `${out}/checkpoint/state.safetensors`;
}

/**
 * The settings of a run that goes on: those it began with, but for what may be told anew.
 *
 * Throws a `UsageError` where it is at its end, or what is given would make it another run.
 */
export async function resumed(given: Given): Promise<Settings> {
  const told = settingsOf(given, true);
  const { out } = told;
  const { isFile } = await Deno.stat(checkpointOf(out)).catch(() => ({ isFile: false }));
  if (!isFile) {
    // `deno task launch` may start a run again that was lost before its first checkpoint.
    if (Number(Deno.env.get("GRAFT_RESTART") ?? 0) > 0) return settingsOf(given);
    throw new Error(
      `there is no ${checkpointOf(out)}: --out names the run that --resume goes on with`,
    );
  }
  const { settings, step } = await checkpointProgress(checkpointOf(out)) as {
    settings: Readonly<Record<string, unknown>>;
    step: number;
  };
  if (step >= told.steps) {
    throw new UsageError(`the run in ${out} has taken ${step} steps: --steps must be above`);
  }
  const result: Record<string, unknown> = { ...told };
  for (const flag of FLAGS) {
    const key = fieldOf(flag);
    if (MAY_CHANGE.includes(flag) || !(key in settings)) continue;
    if (given.has(flag) && result[key] !== settings[key]) {
      throw new UsageError(
        `the run in ${out} began with --${flag} ${settings[key]}, which --resume cannot change`,
      );
    }
    result[key] = settings[key];
  }
  return result as unknown as Settings;
}

/** "eval-every" -> "evalEvery" */
function fieldOf(flag: string): string {
  return flag.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase());
}

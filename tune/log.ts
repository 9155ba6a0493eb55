/**
 * A study's file: one event a line, as JSON, appended when it happens.
 *
 * @module
 */

import { type OpenFile, openToAppend, writeAll } from "./files.ts";
import type { Definition } from "./parameters.ts";
import type { Direction } from "./records.ts";
import type { Values } from "./space.ts";

/** The first line: what the study is. */
export interface StudyEvent {
  /** The kind of event. */
  readonly event: "study";
  /** The version of the format. */
  readonly version: 1;
  /** What the study looks for. */
  readonly direction: Direction;
  /** The seed of its samplers. */
  readonly seed: number;
  /** Its space. */
  readonly space: Definition;
}

/** A trial begins; once more for the same trial, it begins again. */
export interface AskEvent {
  /** The kind of event. */
  readonly event: "ask";
  /** The trial's number. */
  readonly trial: number;
  /** Its parameters. */
  readonly params: Values;
}

/** A trial reports. */
export interface ReportEvent {
  /** The kind of event. */
  readonly event: "report";
  /** The trial's number. */
  readonly trial: number;
  /** The step. */
  readonly step: number;
  /** The value; null where it was not a finite number. */
  readonly value: number | null;
}

/** A trial ends. */
export interface TellEvent {
  /** The kind of event. */
  readonly event: "tell";
  /** The trial's number. */
  readonly trial: number;
  /** How it ended. */
  readonly state: "complete" | "pruned" | "failed";
  /** Its value, where it is complete. */
  readonly value?: number;
  /** Why it failed. */
  readonly reason?: string;
  /** True where its value was not a finite number. */
  readonly diverged?: boolean;
}

/** An event of a trial. */
export type TrialEvent = AskEvent | ReportEvent | TellEvent;

/** An event. */
export type LogEvent = StudyEvent | TrialEvent;

/** A line of the file, with its number from 1. */
export interface Line {
  /** The number, from 1. */
  readonly number: number;
  /** What stands there. */
  readonly event: LogEvent;
}

const CLOSED = "is closed";
const HEAD = '{"event":"study"';

/** An open study file. */
export class Log {
  /** The file's path. */
  readonly path: string;
  /** What the file held when it was opened, a line cut off at its end left out. */
  readonly lines: readonly Line[];
  readonly #file: OpenFile;
  /** Why nothing more can be appended. */
  #ended?: string;

  /** Opens the file, or makes it. */
  constructor(path: string) {
    this.path = path;
    const { file, bytes } = openToAppend(path);
    this.#file = file;
    try {
      this.lines = this.#read(bytes);
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /**
   * Appends an event.
   *
   * @param sync whether to wait until it is on the disk. A process that is killed loses nothing either
   * way, since the system has the line; a machine that loses power may.
   * @throws Error if the file was closed, or cannot be written, as on a full disk. After that nothing is
   * appended, since half a line may stand at the end: opening the file again repairs it.
   */
  append(event: LogEvent, sync: boolean): void {
    if (this.#ended) throw new Error(`study ${this.path}: ${this.#ended}`);
    try {
      writeAll(this.#file, new TextEncoder().encode(JSON.stringify(event) + "\n"));
      if (sync) this.#file.syncDataSync();
    } catch (error) {
      this.#ended = `cannot be written: ${error instanceof Error ? error.message : String(error)}`;
      throw new Error(`study ${this.path}: ${this.#ended}`, { cause: error });
    }
  }

  /** Closes the file. */
  close(): void {
    if (this.#ended !== CLOSED) this.#file.close();
    this.#ended = CLOSED;
  }

  #read(bytes: Uint8Array): Line[] {
    const end = bytes.lastIndexOf(10) + 1;
    const whole = new TextDecoder().decode(bytes.subarray(0, end));
    const texts = whole === "" ? [] : whole.slice(0, -1).split("\n");
    const lines = texts.map((text, i): Line => {
      const event = parse(text);
      if (event) return { number: i + 1, event };
      throw new Error(
        `study ${this.path}, line ${i + 1}: is not an event of a study: ${quoted(text)}`,
      );
    });
    if (lines.length > 0 && lines[0].event.event !== "study") {
      throw new Error(`study ${this.path}, line 1: a study's file begins with a "study" event`);
    }
    if (end === bytes.length) return lines;
    // A line without its end: the process was killed while it wrote.
    const rest = new TextDecoder().decode(bytes.subarray(end));
    const number = lines.length + 1;
    if (lines.length === 0 && !rest.startsWith(HEAD) && !HEAD.startsWith(rest)) {
      throw new Error(`study ${this.path}: is not the file of a study: ${quoted(rest)}`);
    }
    const event = parse(rest);
    if (event) { // Only the line break is missing.
      writeAll(this.#file, Uint8Array.of(10));
      return [...lines, { number, event }];
    }
    console.warn(
      `study ${this.path}, line ${number}: was cut off in the middle and is left out: ${
        quoted(rest)
      }`,
    );
    this.#file.truncateSync(end);
    return lines;
  }
}

/** The event of a line, or undefined where the line is none. */
function parse(text: string): LogEvent | undefined {
  let line: Record<string, unknown>;
  try {
    line = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (line === null || typeof line !== "object") return undefined;
  const whole = (x: unknown) => Number.isSafeInteger(x) && (x as number) >= 0;
  const object = (x: unknown) => typeof x === "object" && x !== null && !Array.isArray(x);
  const fine = line.event === "study"
    ? line.version === 1 && object(line.space) && Number.isSafeInteger(line.seed) &&
      (line.direction === "minimize" || line.direction === "maximize")
    : line.event === "ask"
    ? whole(line.trial) && object(line.params)
    : line.event === "report"
    ? whole(line.trial) && whole(line.step) && (line.value === null || Number.isFinite(line.value))
    : line.event === "tell"
    ? whole(line.trial) &&
      (line.state === "complete"
        ? Number.isFinite(line.value)
        : line.state === "pruned" || line.state === "failed")
    : false;
  return fine ? line as unknown as LogEvent : undefined;
}

function quoted(text: string): string {
  return JSON.stringify(text.length > 60 ? text.slice(0, 60) + "…" : text);
}

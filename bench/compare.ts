/**
 * Runs one case on all sides, in turns, and compares what they computed.
 *
 * @module
 */

import type { Case } from "./cases.ts";
import { median } from "./report.ts";
import { type Launch, SideProcess } from "./sides/process.ts";

/** What one side showed in one case. */
export interface Measured {
  /** Milliseconds of a run: median, least and most of the samples. */
  readonly ms: number;
  readonly low: number;
  readonly high: number;
  /** Milliseconds to make ready and run for the first time, compilation included. */
  readonly first: number;
  /** Milliseconds of a run that the host took to record and submit, where the side tells them. */
  readonly host?: number;
  readonly value: readonly number[];
}

/** A case's outcome on each side, by label: figures, a message where it failed, null where it has no code. */
export interface Outcome {
  readonly case: Case;
  readonly sides: ReadonlyMap<string, Measured | string | null>;
}

/** How long and how often to measure. */
export interface Effort {
  /** Samples of each side. */
  readonly samples: number;
  /** Milliseconds that a sample should take at least. */
  readonly sample: number;
  /** Milliseconds one side may spend on one case, about. */
  readonly budget: number;
}

/** How far values may be from graft's, relative to the larger. */
const TOLERANCE = 2e-3;
/** Milliseconds that training and generation are repeated for before they are measured. */
const WARMING = 4000;
/** Milliseconds of a sample of those: others have filled the caches since the one before. */
const STEADY = 400;
/** Training goes different ways after a while; so many losses are compared. */
const COMPARED = 5;

/** The processes of all sides: those for single ops stay, a training step gets fresh ones. */
export class Sides {
  readonly #launches: readonly Launch[];
  readonly #kept = new Map<string, SideProcess>();
  readonly names: Map<string, string> = new Map();

  constructor(launches: readonly Launch[]) {
    this.#launches = launches;
  }

  /** Runs `work` on every side that can. */
  async run(
    work: Case,
    data: string | null,
    effort: Effort,
    say: (what: string) => void,
  ): Promise<Outcome> {
    const sides = new Map<string, Measured | string | null>();
    const fresh = work.kind === "step" || work.kind === "stories";
    const steady = fresh || work.kind === "prompt" || work.kind === "decode";
    const runners: { label: string; process: SideProcess; first: number; reps: number }[] = [];
    const samples = new Map<string, number[]>();
    const spent = new Map<string, number>();
    const failed = async (label: string, process: SideProcess | null, error: unknown) => {
      sides.set(label, (error as Error).message);
      // A process that failed is not trusted with the next case.
      this.#kept.delete(label);
      await process?.close();
    };
    for (const launch of this.#launches) {
      const { label } = launch;
      say(`${label}: first run`);
      let process: SideProcess | null = null;
      try {
        process = fresh ? await SideProcess.start(launch) : await this.#process(launch);
        this.names.set(label, process.name);
        const { has, ms: opened } = await process.ask({ ask: "open", case: work, data });
        if (!has) {
          sides.set(label, null);
          if (fresh) await process.close();
          continue;
        }
        const first = (await process.ask({ ask: "run", times: 1 })).ms!;
        const { ms } = first < effort.budget / 2
          ? await process.ask({ ask: "run", times: 1 })
          : { ms: first };
        // Engines compile what runs often, and this runs for long: what counts comes after that.
        const warming = steady ? Math.floor(WARMING / ms!) : 0;
        if (warming > 0) await process.ask({ ask: "run", times: warming });
        const sample = steady ? STEADY : effort.sample;
        const reps = Math.min(200, Math.max(1, Math.round(sample / ms!)));
        runners.push({ label, process, first: opened! + first, reps });
        samples.set(label, []);
        spent.set(label, first + ms!);
      } catch (error) {
        await failed(label, process, error);
      }
    }
    for (let i = 0; i < effort.samples; i++) {
      // Who goes first changes.
      const turn = runners.map((_, j) => runners[(i + j) % runners.length]);
      for (const { label, process, reps } of turn) {
        if (sides.has(label)) continue;
        const taken = samples.get(label)!;
        const longest = Math.max(0, ...taken) * reps;
        if (taken.length > 0 && spent.get(label)! + longest > effort.budget) continue;
        say(`${label}: ${i + 1} of ${effort.samples}`);
        try {
          const { ms } = await process.ask({ ask: "run", times: reps });
          taken.push(ms!);
          spent.set(label, spent.get(label)! + ms! * reps);
        } catch (error) {
          await failed(label, process, error);
        }
      }
    }
    for (const { label, process, first } of runners) {
      if (sides.has(label)) continue;
      try {
        const { value, host } = await process.ask({ ask: "value" });
        const all = samples.get(label)!;
        const ms = median(all);
        sides.set(label, {
          ms,
          low: Math.min(...all),
          high: Math.max(...all),
          first,
          host,
          value: value!,
        });
      } catch (error) {
        await failed(label, process, error);
      }
      if (fresh) await process.close();
    }
    return { case: work, sides };
  }

  async #process(launch: Launch): Promise<SideProcess> {
    const known = this.#kept.get(launch.label);
    if (known) return known;
    const process = await SideProcess.start(launch);
    this.#kept.set(launch.label, process);
    return process;
  }

  /** Ends all processes. */
  async close(): Promise<void> {
    for (const process of this.#kept.values()) await process.close();
    this.#kept.clear();
  }
}

/** What is wrong with the values of a case: sides that computed something else than graft. */
export function disagreements({ case: work, sides }: Outcome): string[] {
  const own = sides.get("graft");
  if (own === undefined || own === null || typeof own === "string") return [];
  const problems: string[] = [];
  for (const [label, other] of sides) {
    if (label === "graft" || other === null || typeof other === "string") continue;
    const count = Math.min(own.value.length, other.value.length, COMPARED);
    for (let i = 0; i < count; i++) {
      const [a, b] = [own.value[i], other.value[i]];
      // Sums of products of both signs are small beside 1.
      const apart = Math.abs(a - b) / Math.max(Math.abs(a), Math.abs(b), 1e-3);
      if (!(apart <= TOLERANCE)) {
        problems.push(`${work.name}: ${label} computes ${b} where graft computes ${a}`);
        break;
      }
    }
  }
  return problems;
}

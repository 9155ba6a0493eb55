/**
 * Segments: a plan's programs, cut where a host step begins or ends. Most plans are one segment.
 *
 * @module
 */

import type { Storage } from "./body.ts";
import type { HostFunction, Node } from "./graph.ts";
import type { Backend, Buffer, Program, Results, Run, Step } from "./kernel.ts";
import { isKernel, type LoweredStep } from "./steps.ts";

/** Bytes of a buffer. */
interface Piece {
  readonly buffer: Buffer;
  readonly bytes: number;
}

/** The inputs or the outputs of the host step that stands at `place` in the order of nodes. */
interface HostPart {
  readonly place: number;
  readonly pieces: readonly Piece[];
}

/** A program, with the host steps that end before it and those that begin after it. */
export interface Segment {
  readonly ends: readonly HostPart[];
  readonly program: Program;
  readonly scalarWords: number;
  /** Places of numbers, with the words they fill. */
  readonly scalars: readonly { readonly place: number; readonly word: number }[];
  readonly begins: readonly HostPart[];
  /** What is read back after it: the inputs of `begins`, or, at the end, the plan's results. */
  readonly results: readonly Piece[];
}

interface Cut {
  readonly ends: HostPart[];
  readonly kernels: number[];
  readonly begins: HostPart[];
}

/** Cuts `steps` into segments and binds them to memory. */
export function segmentsOf(
  backend: Backend,
  steps: readonly LoweredStep[],
  workspaces: readonly (Storage | null)[],
  bufferOf: ReadonlyMap<Storage, Buffer>,
  results: readonly Piece[],
): Segment[] {
  const cuts = cutsOf(steps, bufferOf);
  return cuts.map(({ ends, kernels, begins }, i) => {
    const scalars: { place: number; word: number }[] = [];
    let words = 0;
    const bound = kernels.map((at): Step => {
      const step = steps[at];
      if (!isKernel(step)) throw new Error("internal: a host step is no kernel");
      const begin = words;
      step.scalars.forEach((node, s) => scalars.push({ place: node.place, word: begin + s }));
      if (step.scalars.length > 0) words += Math.ceil(step.scalars.length / 64) * 64;
      const workspace = workspaces[at];
      return {
        kernel: step.kernel,
        inputs: step.inputs.map((s) => bufferOf.get(s)!),
        outputs: step.outputs.map((s) => bufferOf.get(s)!),
        workspace: workspace ? bufferOf.get(workspace)! : null,
        scalars: begin,
      };
    });
    return {
      ends,
      program: backend.program(bound, words),
      scalarWords: words,
      scalars,
      begins,
      results: i === cuts.length - 1 ? results : begins.flatMap((b) => b.pieces),
    };
  });
}

function cutsOf(steps: readonly LoweredStep[], bufferOf: ReadonlyMap<Storage, Buffer>): Cut[] {
  const empty = (): Cut => ({ ends: [], kernels: [], begins: [] });
  const cuts: Cut[] = [empty()];
  const pieces = (storages: readonly Storage[]): Piece[] =>
    storages.map((s) => ({ buffer: bufferOf.get(s)!, bytes: s.bytes }));
  steps.forEach((step, at) => {
    const { kind } = step.kernel;
    let cut = cuts.at(-1)!;
    const isLater = kind === "begin"
      ? false
      : cut.begins.length > 0 || (kind === "end" && cut.kernels.length > 0);
    if (isLater) cuts.push(cut = empty());
    const { place } = step.node;
    if (kind === "begin") cut.begins.push({ place, pieces: pieces(step.inputs) });
    else if (kind === "end") cut.ends.push({ place, pieces: pieces(step.outputs) });
    else cut.kernels.push(at);
  });
  // The results are read after the last segment, whose place a beginning host step cannot take.
  if (cuts.at(-1)!.begins.length > 0) cuts.push(empty());
  return cuts;
}

/** The data of one run of a plan. */
export interface PlanRun {
  readonly uploads: Run["uploads"];
  /** The scalars of each segment. */
  readonly scalars: readonly Uint32Array<ArrayBuffer>[];
  /** By place: what host steps do this time. */
  readonly hosts: ReadonlyMap<number, HostFunction>;
}

/** Takes numbers, host data and host functions from `order`. */
export function prepareRun(
  plan: {
    readonly segments: readonly Segment[];
    readonly uploads: readonly { readonly place: number; readonly buffer: Buffer }[];
  },
  order: readonly Node[],
): PlanRun {
  const hosts = new Map<number, HostFunction>();
  for (const { begins } of plan.segments) {
    for (const { place } of begins) hosts.set(place, order[place].host!);
  }
  return {
    uploads: plan.uploads.map(({ place, buffer }) => ({
      buffer,
      data: (order[place].value as { readonly data: ArrayBufferView }).data,
    })),
    scalars: plan.segments.map((segment) => scalarsOf(segment, order)),
    hosts,
  };
}

function scalarsOf(segment: Segment, order: readonly Node[]): Uint32Array<ArrayBuffer> {
  const scalars = new Uint32Array(segment.scalarWords);
  const floats = new Float32Array(scalars.buffer);
  for (const { place, word } of segment.scalars) {
    const node = order[place];
    const { number } = node.value as { readonly number: number };
    switch (node.dtype) {
      case "i32":
        scalars[word] = number | 0;
        break;
      case "u32":
        scalars[word] = number >>> 0;
        break;
      case "bool":
        scalars[word] = number ? 1 : 0;
        break;
      default:
        floats[word] = number;
    }
  }
  return scalars;
}

/** Runs segment after segment; host steps run beside them. */
export async function runSegments(
  backend: Backend,
  segments: readonly Segment[],
  { uploads, scalars, hosts }: PlanRun,
): Promise<Results> {
  const running = new Map<number, Promise<readonly ArrayBufferView[]>>();
  let waiting: (() => void)[] = [];
  const beginWaiting = (): void => {
    for (const begin of waiting) begin();
    waiting = [];
  };
  let results: Results | null = null;
  for (const [i, segment] of segments.entries()) {
    const written = i === 0 ? [...uploads] : [];
    if (segment.ends.length > 0) beginWaiting();
    for (const { place, pieces } of segment.ends) {
      const outputs = await running.get(place)!;
      pieces.forEach(({ buffer }, p) => written.push({ buffer, data: outputs[p] }));
    }
    const after = await segment.program.run({
      uploads: written,
      scalars: scalars[i],
      results: segment.results,
    });
    results = after;
    // Reading waits until the device is idle, so it is given the next segment first.
    beginWaiting();
    waiting = segment.begins.map((begin, b) => () => {
      running.set(begin.place, runHost(segment, b, after, hosts.get(begin.place)!));
    });
    if (!backend.enqueues) beginWaiting();
  }
  return results!;
}

/** Runs the host step that is number `index` among those that begin after `segment`. */
function runHost(
  { begins }: Segment,
  index: number,
  results: Results,
  fn: HostFunction,
): Promise<readonly ArrayBufferView[]> {
  const from = begins.slice(0, index).reduce((n, b) => n + b.pieces.length, 0);
  const count = begins[index].pieces.length;
  const run = async (): Promise<readonly ArrayBufferView[]> => {
    const bytes = count > 0 ? (await results.fetch()).slice(from, from + count) : [];
    return await fn(bytes);
  };
  const done = run();
  done.catch(() => {}); // told to who waits for it
  return done;
}

/**
 * Plans: what a flush runs. A plan is built once for a graph's structure and replayed for every later
 * graph with the same structure; only host data and numbers change.
 *
 * @module
 */

import type { Device } from "./device.ts";
import { storageBytes } from "./dtype.ts";
import { inOrder, type Node } from "./graph.ts";
import { accessesOf } from "./expr.ts";
import { bodiesOf, type Buffer, outputsOf, readsOwn, withOutputs } from "./kernel.ts";
import { assignSlots } from "./liveness.ts";
import type { Storage } from "./body.ts";
import { lower } from "./lower.ts";
import { type Segment, segmentsOf } from "./segments.ts";
import { rowMajor, show, sizeOf } from "./shape.ts";
import { isKernel, type Lowered, type LoweredStep } from "./steps.ts";
import type { Variable } from "./variable.ts";

/** What a flush is asked to do. */
export interface Targets {
  /** Values to read, or to hold on the host until read. */
  readonly results: readonly Node[];
  readonly assignments: readonly (readonly [Variable, Node])[];
}

/** What a plan holds and does, for people and for tests. */
export interface PlanReport {
  /** Kernels run. */
  readonly kernels: number;
  /** Bytes of temporaries. */
  readonly temporaryBytes: number;
  /** What they would be if they shared no memory. */
  readonly unsharedBytes: number;
  /** Labels in order. */
  readonly labels: readonly string[];
}

/** A buffer that plans share for temporaries: they run one after another. */
export interface PoolBuffer {
  readonly buffer: Buffer;
  users: number;
}

/** A plan bound to memory. */
export class Plan {
  lastUsed = 0;
  constructor(
    readonly key: Int32Array,
    /** What runs, one after another. */
    readonly segments: readonly Segment[],
    readonly report: PlanReport,
    /** Places, in the order of nodes, of host data, with the buffers they go to. */
    readonly uploads: readonly { readonly place: number; readonly buffer: Buffer }[],
    /** The `uid`s of variables it is bound to. A plan holds none of them alive. */
    readonly variables: ReadonlySet<number>,
    readonly pool: readonly PoolBuffer[],
  ) {}
}

/** How many nodes the last flush had: most have as many as the one before. */
let usual = 0;

/** The nodes `targets` need, in the order they run. Throws where a variable has changed since. */
export function collect(targets: Targets, mark: number): Node[] {
  const found = new Array<Node>(usual);
  const stack: Node[] = [];
  let count = 0;
  const visit = (node: Node): void => {
    if (node.mark === mark) return;
    node.mark = mark;
    node.place = -1;
    stack.push(node);
  };
  for (const node of targets.results) visit(node);
  for (const [, node] of targets.assignments) visit(node);
  while (stack.length > 0) {
    const node = stack.pop()!;
    checkFresh(node);
    found[count++] = node;
    if (node.value !== null) continue;
    const { sources } = node;
    for (let i = 0; i < sources.length; i++) visit(sources[i]);
  }
  usual = found.length = count;

  // Recording order for what is computed; what is known comes before its first consumer, since the
  // node of a variable may be older than this step or made in it.
  const placed = new Array<Node>(count);
  let places = 0;
  const place = (node: Node): void => {
    node.place = places;
    placed[places++] = node;
  };
  const ordered = inOrder(found, (node) => node.value === null);
  for (let n = 0; n < ordered.length; n++) {
    const node = ordered[n];
    if (node === null) continue;
    const { sources } = node;
    for (let i = 0; i < sources.length; i++) {
      const source = sources[i];
      if (source.value !== null && source.place < 0) place(source);
    }
    place(node);
  }
  for (let n = 0; n < count; n++) if (found[n].place < 0) place(found[n]);
  return placed;
}

/** Forgets a value that was a variable's before the variable changed; throws where it is lost. */
function checkFresh(node: Node): void {
  const { value } = node;
  if (value?.kind === "variable" && value.version !== value.variable.version) {
    if (node.inputs.length === 0) {
      const name = value.variable.name ?? `a variable of shape ${show(node.shape)}`;
      throw new Error(
        `read: the result was not kept, and ${name}, which it is computed from, has changed since; ` +
          `call .keep() on the result before the step that changes it`,
      );
    }
    node.value = null;
  }
  if (node.op.kind === "host" && node.spent) {
    throw new Error(
      `read: the result was not kept, and ${node.attrs.label}, which it is computed from, runs ` +
        `only once; call .keep() on the result before the step`,
    );
  }
}

/** Where a key is written, again and again. */
let words = new Int32Array(1024);

/**
 * The structure of `order` and `targets` as numbers: equal keys mean equal plans. The key is good until
 * the next call.
 */
export function planKey(order: readonly Node[], targets: Targets): Int32Array {
  let count = 0;
  const room = (more: number): void => {
    if (count + more <= words.length) return;
    const wider = new Int32Array(2 * (count + more));
    wider.set(words);
    words = wider;
  };
  room(3);
  words[count++] = order.length;
  for (let n = 0; n < order.length; n++) {
    const { value, sources, signature } = order[n];
    room(3 + sources.length);
    words[count++] = signature;
    if (value === null) {
      for (let i = 0; i < sources.length; i++) words[count++] = sources[i].place;
    } else if (value.kind === "variable") {
      words[count++] = -1;
      words[count++] = value.variable.uid;
    } else words[count++] = value.kind === "number" ? -3 : -4;
  }
  room(2 + targets.results.length + 2 * targets.assignments.length);
  words[count++] = -5;
  for (const node of targets.results) words[count++] = node.place;
  words[count++] = -6;
  for (const [variable, node] of targets.assignments) {
    words[count++] = variable.uid;
    words[count++] = node.place;
  }
  return words.subarray(0, count);
}

/** Builds the plan: lowers, assigns memory, compiles. */
export function buildPlan(
  device: Device,
  key: Int32Array,
  order: readonly Node[],
  targets: Targets,
): Plan {
  const backend = device.backend!;
  const stored = new Set<Node>();
  for (const node of targets.results) stored.add(node);
  for (const [, node] of targets.assignments) stored.add(node);
  const lowered = lower(order, stored, backend.maxBindings);
  const places = placeTargets(lowered, targets);
  const steps = [...lowered.steps, ...places.copies];
  for (const node of targets.results) {
    const storage = lowered.storages.get(node)!;
    storage.last = steps.length;
  }

  // Memory: sources have theirs; temporaries share by liveness.
  const bufferOf = new Map<Storage, Buffer>();
  const temporaries: Storage[] = [];
  const uploads: { place: number; storage: Storage }[] = [];
  const variables = new Set<number>();
  const seen = new Set<Storage>();
  const touch = (storage: Storage): void => {
    if (seen.has(storage)) return;
    seen.add(storage);
    if (storage.bytes > backend.maxBytes) {
      throw new RangeError(
        `${backend.name}: a tensor of ${storage.bytes} bytes does not fit one buffer of this device, which holds ${backend.maxBytes}`,
      );
    }
    const target = places.variableOf.get(storage);
    const value = storage.node?.value ?? null;
    if (target) {
      variables.add(target.uid);
      bufferOf.set(storage, target.allocate());
    } else if (value?.kind === "variable") {
      variables.add(value.variable.uid);
      bufferOf.set(storage, value.variable.allocate());
    } else {
      if (storage.kind === "upload") {
        storage.first = 0;
        uploads.push({ place: storage.node!.place, storage });
      }
      temporaries.push(storage);
    }
  };
  for (const step of steps) {
    for (const s of step.inputs) touch(s);
    for (const s of step.outputs) touch(s);
  }
  for (const node of targets.results) touch(lowered.storages.get(node)!);
  // A kernel's workspace lives for its own step alone.
  const workspaces = steps.map((step, at) => {
    const bytes = isKernel(step) ? backend.workspace(step.kernel) : 0;
    if (bytes === 0) return null;
    const storage: Storage = { kind: "temporary", bytes, node: null, first: at, last: at };
    temporaries.push(storage);
    return storage;
  });
  const slots = assignSlots(temporaries);
  const pool = device.takePool(slots.bytes);
  temporaries.forEach((storage, i) => bufferOf.set(storage, pool[slots.slotOf[i]].buffer));

  const results = targets.results.map((node) => ({
    buffer: bufferOf.get(lowered.storages.get(node)!)!,
    bytes: storageBytes(node.dtype, sizeOf(node.shape)),
  }));
  return new Plan(
    key.slice(),
    segmentsOf(backend, steps, workspaces, bufferOf, results),
    {
      kernels: steps.filter(isKernel).length,
      temporaryBytes: slots.bytes.reduce((a, b) => a + b, 0),
      unsharedBytes: temporaries.reduce((a, s) => a + s.bytes, 0),
      labels: steps.map((s) => s.kernel.label),
    },
    uploads.map(({ place, storage }) => ({ place, buffer: bufferOf.get(storage)! })),
    variables,
    pool,
  );
}

/**
 * Decides for each assignment whether its kernel writes the variable's memory itself, which it may
 * where nobody reads the old value from then on; else a copy follows at the end.
 */
function placeTargets(
  lowered: Lowered,
  targets: Targets,
): { variableOf: Map<Storage, Variable>; copies: LoweredStep[] } {
  const { steps, storages } = lowered;
  const variableOf = new Map<Storage, Variable>();
  const copies: LoweredStep[] = [];
  const oldOf = new Map<Variable, Storage>();
  for (const storage of storages.values()) {
    const value = storage.node?.value;
    if (value?.kind === "variable") oldOf.set(value.variable, storage);
  }
  for (const [variable, node] of targets.assignments) {
    const storage = storages.get(node)!;
    const old = oldOf.get(variable);
    if (old === storage) continue; // updated in place
    const at = steps.findIndex((s) => s.outputs.includes(storage));
    let free = at >= 0 && !variableOf.has(storage) && storage.kind === "temporary";
    if (free && old) {
      for (let i = at + 1; i < steps.length && free; i++) free = !steps[i].inputs.includes(old);
      const step = steps[at];
      if (free && step.inputs.includes(old)) free = rewritesInPlace(step, storage, old);
    }
    if (free) {
      variableOf.set(storage, variable);
      continue;
    }
    const target: Storage = {
      kind: "variable",
      bytes: storage.bytes,
      node: null,
      first: 0,
      last: steps.length,
    };
    variableOf.set(target, variable);
    storage.last = steps.length + targets.assignments.length;
    copies.push(copyStep(node, storage, target));
  }
  return { variableOf, copies };
}

/** Lets the step write `storage` over `old`, which it reads at the same element, if it is of that form. */
function rewritesInPlace(step: LoweredStep, storage: Storage, old: Storage): boolean {
  const kernel = step.kernel;
  if (kernel.kind !== "loop" || kernel.reduced > 0) return false;
  const input = step.inputs.indexOf(old);
  const same = accessesOf(...bodiesOf(kernel)).every((e) =>
    e.input !== input || (e.kind === "load" && readsOwn(kernel, e))
  );
  const output = step.outputs.indexOf(storage);
  if (same) {
    step.kernel = withOutputs(
      kernel,
      outputsOf(kernel).map((o, k) => k === output ? { ...o, inPlace: input } : o),
    );
  }
  return same;
}

function copyStep(node: Node, from: Storage, to: Storage): LoweredStep {
  const strides = rowMajor(node.shape);
  const type = node.dtype === "f16" || node.dtype === "bf16" ? "f32" : node.dtype;
  return {
    node,
    inputs: [from],
    outputs: [to],
    scalars: [],
    kernel: {
      kind: "loop",
      label: "assign",
      shape: node.shape,
      reduced: 0,
      combine: null,
      body: { kind: "load", type, input: 0, strides, offset: 0, bounds: [] },
      inputs: [node.dtype],
      scalars: [],
      output: node.dtype,
      write: { strides, offset: 0 },
      inPlace: null,
    },
  };
}

/**
 * The recorded graph. Calling an op makes a {@linkcode Node}; nothing runs until a flush.
 *
 * @module
 */

import type { Device } from "./device.ts";
import type { DType } from "./dtype.ts";
import type { Results } from "./kernel.ts";
import type { Op } from "./op.ts";
import type { Tensor } from "./tensor.ts";
import { type Shape, show, sizeOf } from "./shape.ts";
import { NO_ATTRS, signatureOf } from "./signature.ts";
import type { Variable } from "./variable.ts";

/** A structural setting of an op, part of a plan's key. */
export type Attr = number | boolean | string | readonly number[];

/** The structural settings of a node. */
export type Attrs = Readonly<Record<string, Attr>>;

/** Where the value of a node lies once it is known. */
export type Value =
  | { readonly kind: "number"; readonly number: number }
  | { readonly kind: "host"; readonly data: ArrayBufferView<ArrayBuffer> }
  | { readonly kind: "results"; readonly results: Promise<Results>; readonly index: number }
  | { readonly kind: "variable"; readonly variable: Variable; readonly version: number };

/** Shape and dtype of one output. */
export interface Output {
  readonly shape: Shape;
  readonly dtype: DType;
}

/** How a custom function's outputs share one gradient: all hand theirs to the first of them. */
export interface CustomGradient {
  readonly anchor: Node;
  readonly index: number;
  readonly outputs: readonly Node[];
  readonly backward: (
    gs: readonly (Tensor | null)[],
    engine: unknown,
  ) => readonly (Tensor | null)[];
}

/**
 * What a host step does: from the bytes of its inputs to those of its outputs, while the device goes
 * on. It may be called again with new bytes where its plan is replayed, never for the same node.
 */
export type HostFunction = (
  inputs: readonly ArrayBuffer[],
) => Promise<readonly ArrayBufferView[]>;

let nextId = 1;
let internal = 0;
let hoists = 0;
let gradients = true;

/** One recorded operation. */
export class Node {
  /** Recording order. */
  readonly id: number = nextId++;
  /** After which recorded node it runs: plans run in this order, then in recording order. */
  after: number;
  readonly op: Op;
  readonly inputs: readonly Node[];
  readonly shape: Shape;
  readonly dtype: DType;
  readonly device: Device;
  readonly attrs: Attrs;
  /** Equal for nodes with the same op, settings, shape and dtype. */
  readonly signature: number;
  /** Whether a gradient flows through this node. */
  readonly needsGrad: boolean;
  /** All outputs of a kernel that has several; `pick` nodes name one. */
  readonly outputs: readonly Output[] | null;
  /** Recorded by the user's own code rather than inside backward or an optimizer. */
  readonly visible: boolean = internal === 0;
  /** How many recorded nodes read this one. */
  consumers = 0;
  value: Value | null;
  /** The variable this leaf reads: where its gradient goes. */
  variable: Variable | null = null;
  /** Whether a variable's memory is this node's result. */
  assigned = false;
  /** The gradient of this very node, where it is not its op's: custom functions. */
  custom: CustomGradient | null = null;
  /**
   * The outputs as tensors, for the gradient of a kernel that has several. A field rather than a weak
   * map: V8 frees what an old map holds only in a full collection.
   */
  picks: readonly Tensor[] | null = null;
  /** What a host step does. */
  host: HostFunction | null = null;
  /** Which walk met it last, and its place in a flush's order. */
  mark = 0;
  place = 0;
  /** Whether a flush has run it, and let its value go. */
  spent = false;

  constructor(
    op: Op,
    inputs: readonly Node[],
    output: Output,
    attrs: Attrs,
    device: Device,
    needsGrad: boolean,
    value: Value | null,
    outputs: readonly Output[] | null,
  ) {
    this.op = op;
    this.inputs = inputs;
    this.shape = output.shape;
    this.dtype = output.dtype;
    this.attrs = attrs;
    this.device = device;
    this.needsGrad = needsGrad;
    this.value = value;
    this.outputs = outputs;
    this.signature = signatureOf(op, attrs, output, outputs);
    this.after = value !== null ? 0 : this.id;
    if (hoists > 0) this.after = Math.max(0, ...inputs.map((i) => i.after));
    for (let i = 0; i < inputs.length; i++) inputs[i].consumers++;
  }

  /** The inputs its value depends on: a movement has others only for its gradient. */
  get sources(): readonly Node[] {
    return this.op.kind === "movement" && this.inputs.length > 1
      ? this.inputs.slice(0, 1)
      : this.inputs;
  }
}

/** Records an operation over `inputs`, which must lie on one device. */
export function record(
  op: Op,
  inputs: readonly Node[],
  output: Output,
  attrs: Attrs = NO_ATTRS,
  outputs: readonly Output[] | null = null,
): Node {
  const device = inputs[0].device;
  let needsGrad = false;
  for (let i = 0; i < inputs.length; i++) {
    const input = inputs[i];
    if (input.device !== device) {
      throw new TypeError(
        `${op.name}: needs its inputs on one device, got ${
          inputs.map((i) => `${i.dtype}${show(i.shape)} on ${i.device.name}`).join(" and ")
        }`,
      );
    }
    if (input.needsGrad) needsGrad = true;
  }
  const node = new Node(
    op,
    inputs,
    output,
    attrs,
    device,
    needsGrad && gradients && op.gradient !== null,
    null,
    outputs,
  );
  if (node.visible && sizeOf(output.shape) <= SMALL && op.kind !== "movement") {
    device.recorded.push(node);
  }
  return node;
}

/** Elements up to which a result that nobody consumed is run, and kept, with the next flush. */
export const SMALL = 256;

let marks = 0;

/** A new mark, by which a walk knows the nodes that it has met. */
export function newMark(): number {
  return ++marks;
}

/**
 * The `wanted` among `nodes`, in the order they run. The nodes of a step have ids close together, so
 * that each has its place at once; where there is no node, there is null.
 *
 * What is done for each node of each step counts its loops: until V8's last compiler has seen a for-of,
 * each turn of it makes an object.
 */
export function inOrder(
  nodes: readonly Node[],
  wanted: (node: Node) => boolean,
): readonly (Node | null)[] {
  let first = Number.MAX_SAFE_INTEGER, last = 0;
  let recorded = true;
  for (let n = 0; n < nodes.length; n++) {
    const node = nodes[n];
    if (!wanted(node)) continue;
    if (node.id < first) first = node.id;
    if (node.id > last) last = node.id;
    recorded &&= node.after === node.id;
  }
  if (last === 0) return [];
  if (!recorded || last - first > 4 * nodes.length) {
    return nodes.filter(wanted).sort((a, b) => a.after - b.after || a.id - b.id);
  }
  const places = new Array<Node | null>(last - first + 1).fill(null);
  for (let n = 0; n < nodes.length; n++) {
    if (wanted(nodes[n])) places[nodes[n].id - first] = nodes[n];
  }
  return places;
}

/** Runs `fn` without recording gradients. */
export function withoutGradients<T>(fn: () => T): T {
  const before = gradients;
  gradients = false;
  try {
    return fn();
  } finally {
    gradients = before;
  }
}

/** Runs `fn` with gradients recorded, also inside {@linkcode withoutGradients}. */
export function withGradients<T>(fn: () => T): T {
  const before = gradients;
  gradients = true;
  try {
    return fn();
  } finally {
    gradients = before;
  }
}

/** Whether operations now record what a gradient needs. */
export function recordsGradients(): boolean {
  return gradients;
}

/** What `fn` records runs as soon as its inputs are there, not in recording order. */
export function hoisted<T>(fn: () => T): T {
  hoists++;
  try {
    return fn();
  } finally {
    hoists--;
  }
}

/** Runs `fn`, whose scalars are no results of the user's. */
export function internally<T>(fn: () => T): T {
  internal++;
  try {
    return fn();
  } finally {
    internal--;
  }
}

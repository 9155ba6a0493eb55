/**
 * Lowering: from recorded nodes to kernels. Decides which pointwise results are stored and which are
 * computed inside their consumer; the consumers' expressions are written by `body.ts`.
 *
 * @module
 */

import {
  Body,
  CannotFuse,
  Chain,
  MustStore,
  ReadLate,
  type Storage,
  type Storages,
} from "./body.ts";
import { type DType, registerOf, storageBytes } from "./dtype.ts";
import type { Node } from "./graph.ts";
import type { Epilogue, LoopKernel, Operand } from "./kernel.ts";
import type { KernelOp, ReduceOp } from "./op.ts";
import { type HostOutputs, placeEnds } from "./host.ts";
import { rowMajor, sameShape, type Shape, sizeOf } from "./shape.ts";
import { mergeSteps } from "./merge.ts";
import { type Lowered, type LoweredStep, setLifetimes } from "./steps.ts";
import { isContiguous, permuteView, reshapeView, type View } from "./view.ts";

/** Cost up to which a result with several consumers is computed in each of them. */
const CHEAP = 3;
/** Cost and loads up to which a kernel grows. */
const LARGEST = 400;

interface Summary {
  cost: number;
  loads: number;
}

/** Lowers `order` (needed nodes, in recording order, leaves among them). */
export function lower(
  order: readonly Node[],
  stored: ReadonlySet<Node>,
  maxBindings: number,
): Lowered {
  const forced = new Set(stored);
  const alone = new Set<Node>();
  for (;;) {
    try {
      const { steps, storages } = new Lowering(order, forced, alone, maxBindings).run();
      const lasting = new Set([...stored].map((node) => storages.get(node)!));
      const merged = mergeSteps(steps, lasting, maxBindings);
      setLifetimes(merged);
      return { steps: merged, storages };
    } catch (error) {
      if (error instanceof CannotFuse) {
        alone.add(error.node);
        continue;
      }
      if (error instanceof ReadLate) {
        const { node, update } = error;
        const early = order.filter((n) => n.id < update.id && n.sources.includes(node));
        if (early.every((n) => forced.has(n))) {
          throw new Error(`internal: ${update.op.name} writes over what is read after it`);
        }
        for (const n of early) forced.add(n);
        continue;
      }
      throw error;
    }
  }
}

const inputSize = (node: Node): number => node.inputs.reduce((sum, i) => sum + sizeOf(i.shape), 0);

class Lowering implements Storages {
  readonly #storages = new Map<Node, Storage>();
  readonly #summaries = new Map<Node, Summary>();
  readonly #steps: LoweredStep[] = [];
  readonly #uses = new Map<Node, number>();
  readonly #widest = new Map<Node, number>();
  readonly #reader = new Map<Node, Node | null>();
  /** The kernel that computes a pointwise result in its epilogue. */
  readonly #kernelOf = new Map<Node, Node>();
  /** Nodes whose storage an update has written over, and by which. */
  readonly #overwritten = new Map<Node, Node>();
  /** The outputs of host steps, which no step writes yet. */
  readonly #hosts: HostOutputs[] = [];

  constructor(
    readonly order: readonly Node[],
    readonly forced: Set<Node>,
    /** Kernels that take no epilogue. */
    readonly alone: ReadonlySet<Node>,
    readonly maxBindings: number,
  ) {}

  run(): Lowered {
    this.#countUses();
    this.#findEpilogues();
    const deferred = new Set(this.#kernelOf.values());
    for (const node of this.order) {
      if (node.value !== null) this.#source(node);
      else if (deferred.has(node)) continue;
      else if (this.#kernelOf.has(node) || this.#isStored(node)) this.#emitWithSources(node);
    }
    placeEnds(this.#steps, this.#hosts);
    return { steps: this.#steps, storages: this.#storages };
  }

  /** Emits `node`; what it turns out to need in memory is stored just before it. */
  #emitWithSources(node: Node): void {
    for (;;) {
      try {
        const kernel = this.#kernelOf.get(node);
        if (kernel) this.#emitKernel(kernel, node);
        else this.#emit(node);
        return;
      } catch (error) {
        if (!(error instanceof MustStore)) throw error;
        if (this.forced.has(error.node) && this.#storages.has(error.node)) {
          throw new Error(`internal: ${error.node.op.name} cannot be viewed as its consumer needs`);
        }
        this.forced.add(error.node);
        this.#emitWithSources(error.node);
      }
    }
  }

  /**
   * For each node, seen through movement: how many nodes read it, the one kernel that does (null where
   * several do), and the largest iteration space among them.
   */
  #countUses(): void {
    for (let i = this.order.length - 1; i >= 0; i--) {
      const node = this.order[i];
      if (node.value !== null) continue;
      const through = node.op.kind === "movement" && !this.forced.has(node);
      const uses = through ? this.#uses.get(node) ?? 0 : 1;
      const width = through
        ? this.#widest.get(node) ?? 0
        : sizeOf(node.op.kind === "reduce" ? node.inputs[0].shape : node.shape);
      const inlines = !this.forced.has(node) &&
        (node.op.kind === "pointwise" || node.op.kind === "fetch");
      const own = this.#reader.get(node);
      // What several kernels read is one of its own.
      const reader = through ? own ?? null : inlines ? own ?? node : node;
      node.sources.forEach((input, index) => {
        this.#uses.set(input, (this.#uses.get(input) ?? 0) + uses);
        this.#widest.set(input, Math.max(this.#widest.get(input) ?? 0, width));
        const before = this.#reader.get(input);
        this.#reader.set(input, before === undefined || before === reader ? reader : null);
        const needsBuffer = node.op.kind === "kernel"
          ? index < node.inputs.length - node.op.numbers
          : node.op.kind === "host" ||
            index === 0 && (node.op.kind === "fetch" || node.op.kind === "update");
        if (needsBuffer) this.#needBuffer(input);
      });
    }
  }

  /**
   * Finds the pointwise results that a kernel can compute from its own, as its epilogue: each kernel
   * with one consumer, followed through reshapes and inlined consumers of its size to a stored one.
   */
  #findEpilogues(): void {
    const consumers = new Map<Node, Node>();
    for (const node of this.order) {
      if (node.value === null) { for (const input of node.sources) consumers.set(input, node); }
    }
    for (const kernel of this.order) {
      if (kernel.value !== null || kernel.op.kind !== "kernel" || !kernel.op.code.epilogue) {
        continue;
      }
      if (this.alone.has(kernel) || this.forced.has(kernel) || kernel.outputs) continue;
      const size = sizeOf(kernel.shape);
      let node = kernel;
      let root: Node | null = null;
      while (!root) {
        if (this.#uses.get(node) !== 1 || this.forced.has(node)) break;
        const next = consumers.get(node);
        if (!next || sizeOf(next.shape) !== size) break;
        if (next.op.kind === "movement" && next.op.name !== "reshape") break;
        if (next.op.kind !== "movement" && next.op.kind !== "pointwise") break;
        node = next;
        if (node.op.kind === "pointwise" && this.#isStored(node)) root = node;
      }
      if (!root || root.dtype !== kernel.dtype) continue;
      // Of several, the one that waits for the others is the one whose inputs take the least room
      // meanwhile; what the others compute is then an input of its epilogue.
      const rival = this.#kernelOf.get(root);
      if (!rival || inputSize(kernel) <= inputSize(rival)) this.#kernelOf.set(root, kernel);
    }
  }

  /** Marks the pointwise value behind `node`'s movements as stored. */
  #needBuffer(node: Node): void {
    let base = node;
    while (base.value === null && base.op.kind === "movement" && !this.forced.has(base)) {
      base = base.inputs[0];
    }
    if (base.value === null || base.value.kind === "number") {
      if (base.op.kind !== "pick") this.forced.add(base);
    }
  }

  #isStored(node: Node): boolean {
    switch (node.op.kind) {
      case "kernel":
      case "reduce":
      case "update":
      case "host":
      case "pick":
        return true;
      case "movement":
        return this.forced.has(node);
    }
    if (this.forced.has(node)) return true;
    const summary = this.#summary(node);
    if (summary.cost > LARGEST || summary.loads > this.maxBindings - 2) return true;
    const cheap = summary.cost <= CHEAP && summary.loads <= 1;
    if (this.#reader.get(node) === null) return !cheap;
    // Read by a larger space: each element would be computed again and again.
    return (this.#widest.get(node) ?? 0) > sizeOf(node.shape) && !cheap;
  }

  #summary(node: Node): Summary {
    const known = this.#summaries.get(node);
    if (known) return known;
    let cost = node.op.kind === "pointwise" ? node.op.cost : node.op.kind === "fetch" ? 4 : 1;
    let loads = node.op.kind === "fetch" ? 1 : 0;
    node.sources.forEach((input, index) => {
      if (node.op.kind === "fetch" && index === 0) return;
      let base = input;
      while (base.value === null && base.op.kind === "movement" && !this.forced.has(base)) {
        base = base.inputs[0];
      }
      if (base.value?.kind === "number") return;
      if (base.value !== null || this.#isStored(base)) loads++;
      else {
        const s = this.#summary(base);
        cost += s.cost;
        loads += s.loads;
      }
    });
    const summary = { cost, loads };
    this.#summaries.set(node, summary);
    return summary;
  }

  #source(node: Node): void {
    const value = node.value!;
    if (value.kind === "number") {
      if (this.forced.has(node)) this.#emit(node);
      return;
    }
    this.#storages.set(node, {
      kind: value.kind === "variable" ? "variable" : "upload",
      bytes: storageBytes(node.dtype, sizeOf(node.shape)),
      node,
      first: -1,
      last: -1,
    });
  }

  #temporary(dtype: DType, shape: Shape): Storage {
    return {
      kind: "temporary",
      bytes: storageBytes(dtype, sizeOf(shape)),
      node: null,
      first: -1,
      last: -1,
    };
  }

  #emit(node: Node): void {
    switch (node.op.kind) {
      case "kernel":
        return this.#emitKernel(node, null);
      case "host":
        return this.#emitHost(node);
      case "pick":
        return; // its storage was made with its kernel
      case "reduce":
        return this.#emitReduce(node, node.op);
      case "update":
        return this.#emitUpdate(node);
      default:
        return this.#emitLoop(node);
    }
  }

  #emitLoop(node: Node): void {
    const body = new Body(this, node);
    const root = new Chain(null, (v) => v, null, false);
    const value = body.own(node, root);
    this.#push(node, body, {
      kind: "loop",
      label: body.label(),
      shape: node.shape,
      reduced: 0,
      combine: null,
      body: value,
      inputs: body.dtypes,
      scalars: body.scalars.map((s) => registerOf(s.dtype)),
      output: node.dtype,
      write: { strides: rowMajor(node.shape), offset: 0 },
      inPlace: null,
    });
  }

  #emitReduce(node: Node, op: ReduceOp): void {
    const input = node.inputs[0];
    const axes = node.attrs.axes as readonly number[];
    const kept = input.shape.map((_, d) => d).filter((d) => !axes.includes(d));
    const order = [...kept, ...axes];
    const body = new Body(this, node);
    const root = new Chain(null, (v) => permuteView(v, order), input, false);
    const value = body.value(input, root);
    const shape = order.map((d) => input.shape[d]);
    this.#push(node, body, {
      kind: "loop",
      label: body.label(),
      shape,
      reduced: axes.length,
      combine: op.combine,
      body: value,
      inputs: body.dtypes,
      scalars: body.scalars.map((s) => registerOf(s.dtype)),
      output: node.dtype,
      write: {
        strides: [...rowMajor(kept.map((d) => input.shape[d])), ...axes.map(() => 0)],
        offset: 0,
      },
      inPlace: null,
    });
  }

  #emitUpdate(node: Node): void {
    const [base, value, start] = node.inputs;
    const axis = node.attrs.axis as number;
    const body = new Body(this, node);
    const root = new Chain(null, (v) => v, value, false);
    const expr = body.value(value, root);
    const slot = body.scalar(start);
    const strides = rowMajor(node.shape);
    // Writes into the storage of `base`: the planner checks that nobody reads the old value later.
    let source = base;
    while (source.op.kind === "movement" && source.value === null) source = source.inputs[0];
    const storage = this.storageOf(source);
    if (!storage || !sameShape(source.shape, node.shape)) throw new MustStore(base);
    this.#storages.set(node, storage);
    this.#overwritten.set(source, node);
    this.#steps.push({
      node,
      inputs: body.storages,
      outputs: [storage],
      scalars: body.scalars,
      kernel: {
        kind: "loop",
        label: body.label(),
        shape: value.shape,
        reduced: 0,
        combine: null,
        body: expr,
        inputs: body.dtypes,
        scalars: body.scalars.map((s) => registerOf(s.dtype)),
        output: node.dtype,
        write: { strides, offset: 0, slot, stride: strides[axis] },
        inPlace: null,
      },
    });
  }

  /** Emits a kernel, and with it the pointwise result `root` that it computes as its epilogue. */
  #emitKernel(node: Node, root: Node | null): void {
    const op = node.op as KernelOp;
    const body = new Body(this, root ?? node);
    const numbers = node.inputs.slice(node.inputs.length - op.numbers);
    const inputs = node.inputs.slice(0, node.inputs.length - op.numbers);
    const operands: Operand[] = inputs.map((input, index) => {
      const root = new Chain(null, (v) => v, input, false);
      const { storage, view } = body.buffer(input, root);
      const operand = {
        dtype: input.dtype,
        shape: view.shape,
        strides: view.strides,
        offset: view.offset,
      };
      if (view.bounds.length > 0 || !op.code.accepts(index, operand)) {
        throw new MustStore(input);
      }
      body.bind(storage, input.dtype, true);
      return operand;
    });
    for (const n of numbers) body.scalar(n);
    let epilogue: Epilogue | null = null;
    if (root) {
      const own = body.beginEpilogue(node);
      const flat = (view: View): View | null => reshapeView(view, node.shape);
      const expr = body.own(root, new Chain(null, flat, null, false, node));
      if (body.storages.length > this.maxBindings - 1) throw new CannotFuse(node);
      epilogue = { body: expr, inputs: body.dtypes.slice(own) };
    }
    const outputs = node.outputs ?? [{ shape: node.shape, dtype: node.dtype }];
    const storages = outputs.map((o) => this.#temporary(o.dtype, o.shape));
    if (node.outputs) this.#setPicks(node, storages);
    this.#storages.set(root ?? node, storages[0]);
    this.#steps.push({
      node: root ?? node,
      inputs: body.storages,
      outputs: storages,
      scalars: body.scalars,
      kernel: {
        kind: "call",
        label: root ? `${op.name}+${body.label()}` : op.name,
        op: op.code,
        attrs: node.attrs as Record<string, number | boolean | string>,
        inputs: operands,
        outputs: outputs.map((o) => ({
          dtype: o.dtype,
          shape: o.shape,
          strides: rowMajor(o.shape),
          offset: 0,
        })),
        scalars: body.scalars.map((s) => registerOf(s.dtype)),
        epilogue,
      },
    });
  }

  /** Emits the reading of a host step's inputs; `placeEnds` adds the writing of its outputs. */
  #emitHost(node: Node): void {
    const body = new Body(this, node);
    for (const input of node.inputs) {
      const { storage, view } = body.buffer(input, new Chain(null, (v) => v, input, false));
      if (!isContiguous(view)) throw new MustStore(input);
      body.bind(storage, input.dtype, true);
    }
    const outputs = node.outputs!.map((o) => this.#temporary(o.dtype, o.shape));
    this.#setPicks(node, outputs);
    this.#hosts.push({ node, outputs });
    this.#steps.push({
      node,
      inputs: body.storages,
      outputs: [],
      scalars: [],
      kernel: { kind: "begin", label: node.attrs.label as string },
    });
  }

  /** Gives the picks of `node` their storages. */
  #setPicks(node: Node, storages: readonly Storage[]): void {
    for (const pick of this.order) {
      if (pick.op.kind === "pick" && pick.inputs[0] === node) {
        this.#storages.set(pick, storages[pick.attrs.index as number]);
      }
    }
  }

  #push(node: Node, body: Body, kernel: LoopKernel): void {
    if (body.storages.length > this.maxBindings - 1) {
      const split = body.splittable();
      if (split) throw new MustStore(split);
    }
    const output = this.#temporary(node.dtype, node.shape);
    this.#storages.set(node, output);
    this.#steps.push({
      node,
      kernel,
      inputs: body.storages,
      outputs: [output],
      scalars: body.scalars,
    });
  }

  storageOf(node: Node): Storage | undefined {
    const update = this.#overwritten.get(node);
    if (update) throw new ReadLate(node, update);
    return this.#storages.get(node);
  }
}

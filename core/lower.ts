/**
 * Lowering: from recorded nodes to kernels. Decides which pointwise results are stored and which are
 * computed inside their consumer, and writes the consumers' expressions.
 *
 * @module
 */

import { type DType, registerOf, storageBytes } from "./dtype.ts";
import { apply, cast, constant, type Expr, type Load } from "./expr.ts";
import type { Node } from "./graph.ts";
import type { Epilogue, Kernel, LoopKernel, Operand } from "./kernel.ts";
import type { KernelOp, MovementOp, ReduceOp } from "./op.ts";
import { rowMajor, sameShape, type Shape, sizeOf } from "./shape.ts";
import { contiguous, expandView, permuteView, reshapeView, type View } from "./view.ts";

/** Where a plan's value lies. Sources are given; temporaries get their place by liveness. */
export interface Storage {
  readonly kind: "temporary" | "variable" | "upload";
  readonly bytes: number;
  /** The leaf, for a source. */
  readonly node: Node | null;
  /** First and last step that touches it. */
  first: number;
  last: number;
}

/** A kernel before it has memory. */
export interface LoweredStep {
  kernel: Kernel;
  readonly inputs: Storage[];
  readonly outputs: Storage[];
  /** The number leaves that fill the kernel's scalars. */
  readonly scalars: Node[];
  /** The node this step computes. */
  readonly node: Node;
}

/** What lowering gives. */
export interface Lowered {
  readonly steps: LoweredStep[];
  readonly storages: ReadonlyMap<Node, Storage>;
}

/** How views are chained between a value and the kernel that reads it. */
class Chain {
  readonly pads: boolean;
  readonly #links = new Map<Node, Chain>();

  constructor(
    /** Towards the consumer; null at the kernel's own iteration space. */
    readonly parent: Chain | null,
    readonly apply: (view: View) => View | null,
    /** The node whose view `apply` transforms: what to store where it cannot. */
    readonly source: Node | null,
    pads: boolean,
    /** At the root of an epilogue: the kernel to leave alone where `apply` cannot. */
    readonly fused: Node | null = null,
  ) {
    this.pads = pads || (parent?.pads ?? false);
  }

  link(key: Node, source: Node, apply: (view: View) => View | null, pads: boolean): Chain {
    let link = this.#links.get(key);
    if (!link) {
      link = new Chain(this, apply, source, pads);
      this.#links.set(key, link);
    }
    return link;
  }

  /** The view at the kernel's iteration space; throws {@linkcode MustStore} where it takes a copy. */
  resolve(view: View): View {
    let v = view;
    for (let c: Chain | null = this as Chain; c; c = c.parent) {
      const next = c.apply(v);
      if (next === null) throw c.fused ? new CannotFuse(c.fused) : new MustStore(c.source!);
      v = next;
    }
    return v;
  }
}

/** Thrown inside lowering: `node` has to be stored first. */
class MustStore extends Error {
  constructor(readonly node: Node) {
    super("must store");
  }
}

/**
 * Thrown inside lowering: what was recorded of `node` before it was written over has to be computed
 * before that, so begin again.
 */
class ReadLate extends Error {
  constructor(readonly node: Node, readonly update: Node) {
    super("read late");
  }
}

/** Thrown inside lowering: what follows kernel `node` cannot be its epilogue, so begin again. */
class CannotFuse extends Error {
  constructor(readonly node: Node) {
    super("cannot fuse");
  }
}

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
      return new Lowering(order, forced, alone, maxBindings).run();
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

class Lowering {
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
          : index === 0 && (node.op.kind === "fetch" || node.op.kind === "update");
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
      // The last kernel wins: the one before it is then an input of the epilogue.
      if (root && root.dtype === kernel.dtype) this.#kernelOf.set(root, kernel);
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
      first: this.#steps.length,
      last: this.#steps.length,
    };
  }

  #emit(node: Node): void {
    switch (node.op.kind) {
      case "kernel":
        return this.#emitKernel(node, null);
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
    const at = this.#steps.length;
    for (const s of body.storages) s.last = at;
    storage.last = at;
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
    const at = this.#steps.length;
    for (const s of body.storages) s.last = at;
    if (node.outputs) {
      for (const pick of this.order) {
        if (pick.op.kind === "pick" && pick.inputs[0] === node) {
          this.#storages.set(pick, storages[pick.attrs.index as number]);
        }
      }
    }
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

  #push(node: Node, body: Body, kernel: LoopKernel): void {
    if (body.storages.length > this.maxBindings - 1) {
      const split = body.splittable();
      if (split) throw new MustStore(split);
    }
    const output = this.#temporary(node.dtype, node.shape);
    const at = this.#steps.length;
    for (const s of body.storages) s.last = at;
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

/** The expression of one kernel under construction, with what it binds. */
class Body {
  readonly storages: Storage[] = [];
  readonly dtypes: DType[] = [];
  readonly scalars: Node[] = [];
  readonly #memo = new Map<Node, Map<Chain, Expr>>();
  readonly #names: string[] = [];
  readonly #inlined = new Map<Node, Set<Storage>>();
  /** Where an epilogue's own inputs begin, and the kernel whose result it starts from. */
  #floor = 0;
  #acc: Node | null = null;

  constructor(readonly lowering: Lowering, readonly root: Node) {
    this.#names.push(root.op.name);
  }

  /** From here on, `node` is the kernel's own result; returns how many inputs the kernel has. */
  beginEpilogue(node: Node): number {
    this.#acc = node;
    return this.#floor = this.storages.length;
  }

  label(): string {
    return this.#names.length <= 4
      ? this.#names.toReversed().join("+")
      : `${this.#names.slice(0, 3).toReversed().join("+")}+${this.#names.length - 3} more`;
  }

  /** The value of `node` seen through `chain`, at the kernel's iteration point. */
  value(node: Node, chain: Chain): Expr {
    let perChain = this.#memo.get(node);
    if (!perChain) this.#memo.set(node, perChain = new Map());
    const known = perChain.get(chain);
    if (known) return known;
    const expr = this.#make(node, chain);
    perChain.set(chain, expr);
    return expr;
  }

  #make(node: Node, chain: Chain): Expr {
    if (node === this.#acc) return { kind: "acc", type: registerOf(node.dtype) };
    const storage = this.lowering.storageOf(node);
    if (storage) {
      const view = chain.resolve(contiguous(node.shape));
      return this.#load(node, storage, view);
    }
    if (node.value?.kind === "number") {
      if (chain.pads) throw new MustStore(node);
      return { kind: "scalar", type: registerOf(node.dtype), slot: this.scalar(node) };
    }
    if (node.op.kind !== "movement") {
      if (chain.pads) throw new MustStore(node);
      this.#names.push(node.op.name);
    }
    return this.own(node, chain);
  }

  /** As {@linkcode value}, but computing `node` here although it is stored. */
  own(node: Node, chain: Chain): Expr {
    const op = node.op;
    switch (op.kind) {
      case "leaf":
        return { kind: "scalar", type: registerOf(node.dtype), slot: this.scalar(node) };
      case "movement":
        return this.value(node.inputs[0], this.#through(node, op, chain));
      case "iota":
        return this.#iota(node, chain);
      case "fetch":
        return this.#fetch(node, chain);
      case "pointwise": {
        const before = this.storages.length;
        const args = node.inputs.map((input) =>
          this.value(input, this.#stretched(input, node, chain))
        );
        if (node !== this.root && this.storages.length > before) {
          this.#inlined.set(node, new Set(this.storages.slice(before)));
        }
        return op.expr(args, node.attrs, node.dtype);
      }
      default:
        throw new Error(`internal: ${op.name} has no expression`);
    }
  }

  #through(node: Node, op: MovementOp, chain: Chain): Chain {
    return chain.link(
      node,
      node.inputs[0],
      (view) => op.view(view, node.attrs, node.shape),
      op.pads,
    );
  }

  #stretched(input: Node, node: Node, chain: Chain): Chain {
    if (sameShape(input.shape, node.shape)) return chain;
    return chain.link(input, input, (view) => expandView(view, node.shape), false);
  }

  #iota(node: Node, chain: Chain): Expr {
    const dim = node.attrs.dim as number;
    const strides = node.shape.map((_, d) => d === dim ? 1 : 0);
    const view = chain.resolve({ shape: node.shape, strides, offset: 0, bounds: [] });
    let sum: Expr = constant("i32", view.offset);
    // The index of a lone element stays an index, though always 0: given code without any input, the
    // optimizer of Mesa 22's software driver does not come to an end.
    const lone = sizeOf(view.shape) === 1;
    view.strides.forEach((stride, d) => {
      if (stride === 0 || (view.shape[d] === 1 && !lone)) return;
      const index: Expr = { kind: "index", type: "i32", dim: d };
      sum = apply("add", sum, stride === 1 ? index : apply("mul", index, constant("i32", stride)));
    });
    return cast(sum, registerOf(node.dtype));
  }

  #fetch(node: Node, chain: Chain): Expr {
    const [source, index] = node.inputs;
    const axis = node.attrs.axis as number;
    const { storage, view } = this.buffer(source, new Chain(null, (v) => v, source, false));
    if (view.bounds.length > 0) throw new MustStore(source);
    const gather = node.op.kind === "fetch" && node.op.mode === "gather";
    const spread = gather ? 1 : index.shape.length;
    // The source over the output's space, standing still along the index's dimensions.
    const strides = gather ? view.strides.with(axis, 0) : [
      ...view.strides.slice(0, axis),
      ...index.shape.map(() => 0),
      ...view.strides.slice(axis + 1),
    ];
    const over = chain.resolve({ shape: node.shape, strides, offset: view.offset, bounds: [] });
    const tail = node.shape.length - axis - spread;
    const indexChain = gather ? chain : chain.link(
      node,
      index,
      (v) =>
        expandView({
          shape: [...v.shape, ...new Array<number>(tail).fill(1)],
          strides: [...v.strides, ...new Array<number>(tail).fill(0)],
          offset: v.offset,
          bounds: v.bounds,
        }, node.shape),
      false,
    );
    const at = this.value(index, indexChain);
    return {
      kind: "fetch",
      type: registerOf(node.dtype),
      input: this.bind(storage, node.dtype),
      strides: over.strides,
      offset: over.offset,
      at: [{ index: cast(at, "i32"), stride: view.strides[axis], size: source.shape[axis] }],
    };
  }

  /** The storage and view of a value that must lie in memory. */
  buffer(node: Node, chain: Chain): { storage: Storage; view: View } {
    const storage = this.lowering.storageOf(node);
    if (storage) return { storage, view: chain.resolve(contiguous(node.shape)) };
    if (node.op.kind === "movement") {
      return this.buffer(node.inputs[0], this.#through(node, node.op, chain));
    }
    throw new MustStore(node);
  }

  #load(node: Node, storage: Storage, view: View): Load {
    return {
      kind: "load",
      type: registerOf(node.dtype),
      input: this.bind(storage, node.dtype),
      strides: view.strides,
      offset: view.offset,
      bounds: view.bounds,
    };
  }

  /** The input number of `storage`; a call's operands each have a number of their own. */
  bind(storage: Storage, dtype: DType, anew = false): number {
    const known = anew ? -1 : this.storages.indexOf(storage, this.#floor);
    if (known >= 0) return known;
    this.storages.push(storage);
    this.dtypes.push(dtype);
    return this.storages.length - 1;
  }

  scalar(node: Node): number {
    const known = this.scalars.indexOf(node);
    if (known >= 0) return known;
    this.scalars.push(node);
    return this.scalars.length - 1;
  }

  /** The inlined node to store so that fewer buffers are bound. */
  splittable(): Node | null {
    let best: Node | null = null;
    let most = 1;
    for (const [node, storages] of this.#inlined) {
      // The largest that still fits a kernel of its own.
      if (storages.size > most && storages.size < this.lowering.maxBindings - 1) {
        best = node;
        most = storages.size;
      }
    }
    return best ?? this.#inlined.keys().next().value ?? null;
  }
}

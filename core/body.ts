/**
 * The expression of a kernel: what lowering writes for one stored result, with the views of what it
 * reads and the buffers it binds.
 *
 * @module
 */

import { type DType, registerOf } from "./dtype.ts";
import { apply, cast, constant, type Expr, type Load } from "./expr.ts";
import type { Node } from "./graph.ts";
import type { MovementOp } from "./op.ts";
import { sameShape, sizeOf } from "./shape.ts";
import { contiguous, expandView, type View } from "./view.ts";

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
/** What is stored so far. */
export interface Storages {
  /** How many buffers a kernel may bind. */
  readonly maxBindings: number;
  /** The storage of `node`, if it has one; throws where it has been written over. */
  storageOf(node: Node): Storage | undefined;
}

/** How views are chained between a value and the kernel that reads it. */
export class Chain {
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
export class MustStore extends Error {
  constructor(readonly node: Node) {
    super("must store");
  }
}

/**
 * Thrown inside lowering: what was recorded of `node` before it was written over has to be computed
 * before that, so begin again.
 */
export class ReadLate extends Error {
  constructor(readonly node: Node, readonly update: Node) {
    super("read late");
  }
}

/** Thrown inside lowering: what follows kernel `node` cannot be its epilogue, so begin again. */
export class CannotFuse extends Error {
  constructor(readonly node: Node) {
    super("cannot fuse");
  }
}
/** The expression of one kernel under construction, with what it binds. */
export class Body {
  readonly storages: Storage[] = [];
  readonly dtypes: DType[] = [];
  readonly scalars: Node[] = [];
  readonly #memo = new Map<Node, Map<Chain, Expr>>();
  readonly #names: string[] = [];
  readonly #inlined = new Map<Node, Set<Storage>>();
  /** Where an epilogue's own inputs begin, and the kernel whose result it starts from. */
  #floor = 0;
  #acc: Node | null = null;

  constructor(readonly lowering: Storages, readonly root: Node) {
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
    let sum: Expr | null = view.offset === 0 ? null : constant("i32", view.offset);
    // The index of a lone element stays an index, though always 0: given code without any input, the
    // optimizer of Mesa 22's software driver does not come to an end.
    const lone = sizeOf(view.shape) === 1;
    view.strides.forEach((stride, d) => {
      if (stride === 0 || (view.shape[d] === 1 && !lone)) return;
      const index: Expr = { kind: "index", type: "i32", dim: d };
      const term = stride === 1 ? index : apply("mul", index, constant("i32", stride));
      sum = sum === null ? term : apply("add", sum, term);
    });
    return cast(sum ?? constant("i32", 0), registerOf(node.dtype));
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

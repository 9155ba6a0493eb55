/**
 * Variables: tensors with memory of their own, that can be assigned to. Parameters, gradients,
 * optimizer state and caches are variables.
 *
 * @module
 */

import { attach } from "./autograd.ts";
import { currentDevice, type Device } from "./device.ts";
import { bytesOf, type DType, isFloat, storageBytes } from "./dtype.ts";
import { Node, withoutGradients } from "./graph.ts";
import type { Buffer } from "./kernel.ts";
import { leafOp, scalar } from "./op.ts";
import { identity } from "./ops/identity.ts";
import { recordUpdate } from "./ops/update.ts";
import { axisOf, sameShape, type Shape, show, sizeOf } from "./shape.ts";
import { NO_ATTRS } from "./signature.ts";
import { Tensor } from "./tensor.ts";
import { yieldToEvents } from "./turn.ts";
import { nextUid } from "./uid.ts";

/** Options of a {@linkcode Variable}. */
export interface VariableOptions {
  /** Whether `backward()` computes its gradient. Default false. */
  readonly requiresGrad?: boolean;
  /** For messages. */
  readonly name?: string;
  /**
   * Whether a subclass computes the value from other variables: then it has no memory of its own.
   *
   * @internal
   */
  readonly computed?: boolean;
}

/** Bytes that {@linkcode Variable.fill} asks for at a time. */
const BLOCK = 4 << 20;

interface Memory {
  buffer: Buffer | null;
}

/** What is left to free of a variable that nobody holds any more. */
interface Remains {
  readonly device: Device;
  readonly memory: Memory;
  readonly uid: number;
}

// A convenience: `dispose()` does not wait for the garbage collector.
const unheld = new FinalizationRegistry<Remains>(({ device, memory, uid }) => {
  device.release(uid, memory.buffer);
  memory.buffer = null;
});

/**
 * A tensor that holds memory and can be assigned to.
 *
 * @example
 * ```ts
 * import { init, tensor, Variable } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const count = new Variable(tensor([0, 0]));
 * count.assign(count.add(1));
 * console.log(await count.data()); // Float32Array [1, 1]
 * ```
 */
export class Variable<D extends DType = DType> extends Tensor<D> {
  /** @internal */
  readonly uid: number = nextUid();
  /** For messages; a module's parameters get their path. */
  name: string | null;
  /** Counts the assignments that have run. */
  version = 0;
  #requiresGrad: boolean;
  #grad: Variable<D> | null = null;
  /** Kept for its memory while `grad` is null. */
  #gradMemory: Variable<D> | null = null;
  #device: Device;
  #memory: Memory = { buffer: null };
  #leaf: Node | null = null;

  /** A variable that starts as `value`, which is recorded, not run, if it is no host data. */
  constructor(value: Tensor<D>, options: VariableOptions = {}) {
    super(value.node);
    this.name = options.name ?? null;
    this.#device = value.device;
    this.#requiresGrad = false;
    if (options.requiresGrad) this.requiresGrad = true;
    unheld.register(this, { device: this.#device, memory: this.#memory, uid: this.uid }, this);
    if (this.#device.backend === null || options.computed) return;
    const known = value.node.value;
    if (known?.kind === "host") this.#device.backend.write(this.allocate(), known.data);
    else this.#assign(value.node);
  }

  /** A variable of that shape whose first value is given by {@linkcode write}, not by an assignment. */
  static empty<D extends DType>(
    shape: Shape,
    dtype: D,
    options: VariableOptions = {},
    device: Device = currentDevice(),
  ): Variable<D> {
    const data = new Uint8Array(0);
    const node = new Node(
      leafOp,
      [],
      { shape, dtype },
      NO_ATTRS,
      device,
      false,
      { kind: "host", data },
      null,
    );
    return new Variable<D>(new Tensor<D>(node), options);
  }

  /**
   * The node that stands for the value at this point of the recording.
   *
   * @internal
   */
  override get node(): Node {
    // The base constructor reads `node` before the private fields are there.
    if (!(#device in this)) return super.node;
    const self = this as unknown as Variable;
    const pending = this.#device.assignments.get(self);
    const leaf = this.#leaf;
    if (pending) {
      // The value is still a recipe, but gradients stop here all the same.
      if (!this.#requiresGrad) return pending;
      if (leaf?.inputs[0] === pending && leaf.needsGrad) return leaf;
      this.#leaf = attach(new Tensor(pending)).node;
      this.#leaf.variable = self;
      return this.#leaf;
    }
    if (leaf && leaf.op === leafOp && leaf.needsGrad === this.#requiresGrad) {
      const value = leaf.value as { readonly version: number };
      if (value.version === this.version) return leaf;
    }
    this.#leaf = new Node(
      leafOp,
      [],
      { shape: this.shape, dtype: this.dtype },
      NO_ATTRS,
      this.#device,
      this.#requiresGrad,
      { kind: "variable", variable: self, version: this.version },
      null,
    );
    this.#leaf.variable = self;
    return this.#leaf;
  }

  /** As {@linkcode node}, but for gradients. */
  get #value(): Node {
    return this.#device.assignments.get(this as unknown as Variable) ?? this.node;
  }

  /** Whether `backward()` computes a gradient for it: the one truth for freezing. */
  get requiresGrad(): boolean {
    return this.#requiresGrad;
  }
  set requiresGrad(value: boolean) {
    if (value && !isFloat(this.dtype)) {
      throw new TypeError(`requiresGrad: needs a floating-point dtype, got ${this.dtype}`);
    }
    this.#requiresGrad = value;
    if (!value) this.grad = null;
  }

  /** The gradient that `backward()` has added up, or null. */
  get grad(): Variable<D> | null {
    return this.#grad;
  }
  /** Null forgets the gradient, and spares its memory if no flush has run it yet. */
  set grad(value: Tensor<D> | null) {
    if (value === null) {
      if (this.#grad) this.#device.assignments.delete(this.#grad as unknown as Variable);
      this.#grad = null;
      return;
    }
    if (!sameShape(value.shape, this.shape)) {
      throw new RangeError(
        `grad: needs the shape of its variable ${show(this.shape)}, got ${show(value.shape)}`,
      );
    }
    if (!this.#gradMemory) {
      this.#gradMemory = Variable.empty(this.shape, this.dtype, {
        name: this.name ? `the gradient of ${this.name}` : "a gradient",
      }, this.#device);
    }
    this.#grad = this.#gradMemory;
    this.#grad.assign(value);
  }

  /**
   * Records an assignment; later reads of this variable see `value`. It runs with the next flush.
   *
   * Throws a `RangeError` on another shape, a `TypeError` on another dtype or device.
   */
  assign(value: Tensor<D>): this {
    if (!sameShape(value.shape, this.shape)) {
      throw new RangeError(
        `assign: needs shape ${show(this.shape)}${this.name ? ` for ${this.name}` : ""}, got ${
          show(value.shape)
        }`,
      );
    }
    if (value.dtype !== this.dtype) {
      throw new TypeError(`assign: needs dtype ${this.dtype}, got ${value.dtype}`);
    }
    if (value.device !== this.#device) {
      throw new TypeError(
        `assign: needs a tensor on ${this.#device.name}, got one on ${value.device.name}`,
      );
    }
    this.#assign(value.node);
    return this;
  }

  #assign(value: Node): void {
    if (this.#device.backend === null) return;
    // Each variable gets a node of its own, so that the kernel can write its memory.
    const plain = value.value === null && value.op.kind !== "movement" && !value.assigned;
    const node = plain ? value : withoutGradients(() => identity(new Tensor(value)).node);
    node.assigned = true;
    node.consumers++;
    this.#device.assignments.set(this as unknown as Variable, node);
  }

  /**
   * Records that `value` is written over the elements from `start` on along `axis`: how a cache grows.
   * Only those elements are touched. `start` is a per-step value. Not differentiable.
   *
   * Throws a `RangeError` where it does not fit.
   */
  update(value: Tensor<D>, axis: number, start: number): this {
    const dim = axisOf("update", axis, this.shape);
    const fits = value.shape.length === this.shape.length &&
      value.shape.every((n, d) => d === dim ? start + n <= this.shape[d] : n === this.shape[d]);
    if (!fits || !Number.isInteger(start) || start < 0) {
      throw new RangeError(
        `update: needs a value that fits ${
          show(this.shape)
        } from ${start} on along axis ${dim}, got ${show(value.shape)}`,
      );
    }
    if (value.dtype !== this.dtype) {
      throw new TypeError(`update: needs dtype ${this.dtype}, got ${value.dtype}`);
    }
    if (this.#device.backend === null) return this;
    const node = withoutGradients(() =>
      recordUpdate(this.#value, value.node, scalar(start, "i32", this.#device).node, dim)
    );
    node.assigned = true;
    node.consumers++;
    this.#device.assignments.set(this as unknown as Variable, node);
    return this;
  }

  /** Overwrites the value with host data at once, ordered after what has been flushed. */
  async write(data: ArrayBufferView): Promise<void> {
    const bytes = storageBytes(this.dtype, sizeOf(this.shape));
    if (data.byteLength > bytes) {
      throw new RangeError(
        `write: ${this.name ?? "the variable"} holds ${bytes} bytes, got ${data.byteLength}`,
      );
    }
    if (this.#device.backend === null) return;
    this.#device.assignments.delete(this as unknown as Variable);
    await this.#device.settled();
    this.#device.backend.write(this.allocate(), data);
    this.version++;
  }

  /**
   * As {@linkcode write}, block by block: `make` puts the bytes of the value from byte `at` on into the
   * memory that it is handed, at once. Others get their turn between blocks. Where `make` throws, the
   * blocks before have been written.
   *
   * @internal
   */
  async fill(make: (into: Uint8Array<ArrayBufferLike>, at: number) => void): Promise<void> {
    const { backend } = this.#device;
    if (backend === null) return;
    const bytes = bytesOf(this.dtype) * sizeOf(this.shape);
    for (let at = 0; at < bytes; at += BLOCK) {
      await this.#device.settled();
      this.version++;
      const count = Math.min(BLOCK, bytes - at);
      backend.fill(this.allocate(), at, count, (into) => make(into, at));
      this.#device.assignments.delete(this as unknown as Variable);
      await yieldToEvents();
    }
  }

  /**
   * The memory, allocated when first needed. For the planner.
   *
   * @internal
   */
  allocate(): Buffer {
    this.#memory.buffer ??= this.#device.backend!.allocate(
      storageBytes(this.dtype, sizeOf(this.shape)),
    );
    return this.#memory.buffer;
  }

  /**
   * Called by the flush that runs the assignment of `node`.
   *
   * @internal
   */
  settle(node: Node): void {
    this.version++;
    if (node.value === null) {
      node.value = {
        kind: "variable",
        variable: this as unknown as Variable,
        version: this.version,
      };
    }
  }

  /** Frees the memory now. The variable, and its gradient, cannot be used any more. */
  dispose(): void {
    this.#gradMemory?.dispose();
    this.#gradMemory = null;
    this.#grad = null;
    this.#device.assignments.delete(this as unknown as Variable);
    this.#device.release(this.uid, this.#memory.buffer);
    this.#memory.buffer = null;
    unheld.unregister(this);
  }

  /** As {@linkcode dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

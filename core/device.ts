/**
 * Devices, and the flush: what turns recorded nodes into runs of plans.
 *
 * @module
 */

import { bytesOf, hostArray, storageBytes } from "./dtype.ts";
import { newMark, type Node } from "./graph.ts";
import type { Backend, BackendCounters, Buffer, Results } from "./kernel.ts";
import {
  buildPlan,
  collect,
  type Plan,
  planKey,
  type PlanReport,
  type PoolBuffer,
} from "./plan.ts";
import { openBackend } from "./registry.ts";
import { prepareRun, runSegments } from "./segments.ts";
import { show, sizeOf } from "./shape.ts";
import type { Variable } from "./variable.ts";

/** Which device to run on; `auto` is a real GPU where there is one, else the CPU. */
export type DeviceName = "auto" | "cpu" | "webgpu" | "meta";

/** Options of {@linkcode init}. */
export interface InitOptions {
  /** Default `auto`. Naming `webgpu` also takes a software adapter. */
  readonly device?: DeviceName;
  /** Threads of the cpu backend; default: one for each core. */
  readonly threads?: number;
}

/** Plans a device remembers. */
const PLANS = 96;

/** A device that tensors live on. */
export class Device {
  /** Which kind of device. */
  readonly name: "cpu" | "webgpu" | "meta";
  /**
   * Null for `meta`, which knows shapes only.
   *
   * @internal
   */
  readonly backend: Backend | null;
  /**
   * Small results since the last flush that may be nobody's input.
   *
   * @internal
   */
  recorded: Node[] = [];
  /**
   * Results the user asked to keep with the next flush.
   *
   * @internal
   */
  keeps: Set<Node> = new Set();
  /**
   * Pending assignments; the last one to a variable counts.
   *
   * @internal
   */
  assignments: Map<Variable, Node> = new Map();
  /**
   * When the host step recorded last begins: see `host.ts`.
   *
   * @internal
   */
  lastHost = 0;
  /** Whether plans are replayed. Off, each flush builds its plan anew: for tests. */
  replay = true;
  /** Flushes that ran something, and those among them that built a plan. */
  readonly flushes: { runs: number; built: number } = { runs: 0, built: 0 };
  /** The plan that ran last. */
  lastReport: PlanReport | null = null;
  #plans = new Map<number, Plan[]>();
  #planCount = 0;
  #clock = 0;
  #pool: PoolBuffer[] = [];
  #chain: Promise<unknown> = Promise.resolve();
  #closed = false;

  /** @internal */
  constructor(name: "cpu" | "webgpu" | "meta", backend: Backend | null) {
    this.name = name;
    this.backend = backend;
  }

  /** What it is, in words. */
  get description(): string {
    return this.backend?.description ?? "shapes only, no memory";
  }

  /** What the backend has made so far; see {@linkcode BackendCounters}. */
  get counters(): BackendCounters {
    return this.#need("counters").counters;
  }

  #need(what: string): Backend {
    if (this.#closed) throw new Error(`${what}: the device ${this.name} is closed`);
    if (!this.backend) {
      throw new Error(`${what}: a tensor on the meta device has a shape but no values`);
    }
    return this.backend;
  }

  /**
   * Runs what is recorded: pending assignments, what was kept, small results that nobody consumed.
   * Resolves when the run is enqueued (webgpu) or done (cpu).
   */
  async flush(): Promise<void> {
    await this.evaluate([]);
  }

  /**
   * As {@linkcode flush}, and makes the values of `results` known.
   *
   * @internal
   */
  async evaluate(results: readonly Node[]): Promise<void> {
    const backend = this.#need("flush");
    const wanted = new Set<Node>();
    for (const node of results) if (this.#isOpen(node)) wanted.add(node);
    for (const node of this.keeps) if (this.#isOpen(node)) wanted.add(node);
    for (const node of this.recorded) {
      if (node.consumers === 0 && this.#isOpen(node)) wanted.add(node);
    }
    const assignments = [...this.assignments];
    const order = collect({ results: [...wanted], assignments }, newMark());
    // A result of an earlier flush used again: it comes back by way of the host. Nothing is taken off
    // the lists before, since others may flush meanwhile.
    const earlier: Node[] = [];
    for (let n = 0; n < order.length; n++) {
      if (order[n].value?.kind === "results") earlier.push(order[n]);
    }
    if (earlier.length > 0) {
      await Promise.all(earlier.map((n) => this.#toHost(n)));
      return await this.evaluate(results);
    }
    // New ones: in V8 a table that was cleared refers to the next one, and so the garbage of a step,
    // once old, would keep alive that of all steps after it until the next full collection.
    this.keeps = new Set();
    this.recorded = [];
    this.assignments = new Map();
    if (wanted.size === 0 && assignments.length === 0) return;
    for (let n = 0; n < order.length; n++) {
      const node = order[n];
      // Scalars are held, whoever consumed them: they are what people print.
      if (
        node.shape.length === 0 && node.value === null && node.visible &&
        node.op.kind !== "movement" && node.outputs === null
      ) wanted.add(node);
    }
    const targets = { results: [...wanted], assignments };
    const key = planKey(order, targets);
    let plan = this.replay ? this.#find(key) : null;
    if (!plan) {
      try {
        plan = buildPlan(this, key, order, targets);
      } catch (error) {
        // What was assigned is still to be done: the caller may free memory and flush again.
        for (const [variable, node] of assignments) {
          if (!this.assignments.has(variable)) this.assignments.set(variable, node);
        }
        throw error;
      }
      this.flushes.built++;
      this.#remember(plan);
    }
    this.flushes.runs++;
    plan.lastUsed = ++this.#clock;
    this.lastReport = plan.report;

    // From here on the values count as known; a failing run rejects whoever reads them.
    const { segments } = plan;
    const run = prepareRun(plan, order);
    const before = this.#chain;
    const running: Promise<Results> = (async () => {
      await before;
      return await runSegments(backend, segments, run);
    })();
    this.#chain = running.catch(() => {});
    for (let n = 0; n < order.length; n++) if (order[n].value === null) order[n].spent = true;
    targets.results.forEach((node, index) => {
      node.value = { kind: "results", results: running, index };
    });
    for (const [variable, node] of assignments) variable.settle(node);
    if (!this.replay) void running.finally(() => this.#forget(plan)).catch(() => {});
    await running;
  }

  #isOpen(node: Node): boolean {
    if (node.op.kind === "leaf") return false;
    const value = node.value;
    return value === null ||
      (value.kind === "variable" && value.version !== value.variable.version);
  }

  /**
   * The bytes of a node's value, which a flush has made known. With `own` they may be those that the
   * node holds: no copy, for whoever alone has the node.
   *
   * @internal
   */
  async bytes(node: Node, own = false): Promise<ArrayBuffer> {
    const backend = this.#need("read");
    const count = sizeOf(node.shape);
    let value = node.value;
    if (value === null) {
      throw new Error(
        `read: internal: the value of ${node.op.name}${show(node.shape)} is not known`,
      );
    }
    if (value.kind === "results") {
      await this.#toHost(node);
      value = node.value!;
    }
    switch (value.kind) {
      case "host": {
        const { data } = value;
        if (own && data.byteOffset === 0) return data.buffer;
        return data.buffer.slice(data.byteOffset, data.byteOffset + count * bytesOf(node.dtype));
      }
      case "number": {
        const array = hostArray(node.dtype, new ArrayBuffer(4), 1);
        array[0] = value.number;
        return array.buffer;
      }
      case "variable": {
        await this.#chain;
        return await backend.read(value.variable.allocate(), count * bytesOf(node.dtype));
      }
      default:
        throw new Error("read: internal: no such value");
    }
  }

  async #toHost(node: Node): Promise<void> {
    const value = node.value;
    if (value?.kind !== "results") return;
    const fetched = await (await value.results).fetch();
    const bytes = fetched[value.index];
    node.value = {
      kind: "host",
      data: new Uint8Array(
        bytes,
        0,
        Math.min(bytes.byteLength, storageBytes(node.dtype, sizeOf(node.shape))),
      ),
    };
  }

  /** Waits for what was enqueued. */
  async settled(): Promise<void> {
    await this.#chain;
  }

  /**
   * Buffers for a plan's slots, shared with other plans. `bytes` is in descending order.
   *
   * @internal
   */
  takePool(bytes: readonly number[]): PoolBuffer[] {
    const backend = this.#need("plan");
    const taken = new Set<PoolBuffer>();
    const take = (need: number): PoolBuffer => {
      let best: PoolBuffer | null = null;
      for (const candidate of this.#pool) {
        if (taken.has(candidate) || candidate.buffer.bytes < need) continue;
        if (!best || candidate.buffer.bytes < best.buffer.bytes) best = candidate;
      }
      if (!best) {
        best = { buffer: backend.allocate(need), users: 0 };
        this.#pool.push(best);
      }
      best.users++;
      taken.add(best);
      return best;
    };
    try {
      return bytes.map(take);
    } catch (error) {
      this.#leave(taken);
      throw error;
    }
  }

  /** Gives pool buffers back; those of no plan are freed. */
  #leave(taken: Iterable<PoolBuffer>): void {
    for (const entry of taken) {
      if (--entry.users > 0) continue;
      this.#pool = this.#pool.filter((p) => p !== entry);
      this.backend!.free(entry.buffer);
    }
  }

  #find(key: Int32Array): Plan | null {
    const bucket = this.#plans.get(hashOf(key));
    return bucket?.find((p) => sameKey(p.key, key)) ?? null;
  }

  #remember(plan: Plan): void {
    if (!this.replay) return;
    if (this.#planCount >= PLANS) {
      let oldest: Plan | null = null;
      for (const bucket of this.#plans.values()) {
        for (const p of bucket) if (!oldest || p.lastUsed < oldest.lastUsed) oldest = p;
      }
      if (oldest) this.#evict(oldest);
    }
    const hash = hashOf(plan.key);
    const bucket = this.#plans.get(hash);
    if (bucket) bucket.push(plan);
    else this.#plans.set(hash, [plan]);
    this.#planCount++;
  }

  #evict(plan: Plan): void {
    const hash = hashOf(plan.key);
    const bucket = this.#plans.get(hash) ?? [];
    const left = bucket.filter((p) => p !== plan);
    if (left.length === bucket.length) return;
    if (left.length === 0) this.#plans.delete(hash);
    else this.#plans.set(hash, left);
    this.#planCount--;
    const before = this.#chain;
    this.#chain = before.then(() => this.#forget(plan));
  }

  #forget(plan: Plan): void {
    for (const { program } of plan.segments) program.dispose();
    this.#leave(plan.pool);
  }

  /**
   * Frees the memory of the variable `uid` once what was enqueued is done, and drops its plans.
   *
   * @internal
   */
  release(uid: number, buffer: Buffer | null): void {
    for (const bucket of [...this.#plans.values()]) {
      for (const plan of bucket) if (plan.variables.has(uid)) this.#evict(plan);
    }
    if (buffer) this.#chain = this.#chain.then(() => this.#closed || this.backend!.free(buffer));
  }

  /** Gives the device back. Tensors on it can no longer be read. */
  async close(): Promise<void> {
    if (this.#closed) return;
    await this.#chain;
    this.#closed = true;
    await this.backend?.close();
    if (current === this) current = null;
  }
}

function hashOf(key: Int32Array): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) h = Math.imul(h ^ key[i], 0x01000193);
  return h;
}

function sameKey(a: Int32Array, b: Int32Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

let current: Device | null = null;

/**
 * Opens a device and makes it the one new tensors are made on.
 *
 * Throws where a device asked for by name is not there; the message says what to install.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 *
 * const device = await init({ device: "cpu" });
 * console.log(await tensor([1, 2, 3]).mul(2).data()); // Float32Array [2, 4, 6]
 * await device.close();
 * ```
 */
export async function init(options: InitOptions = {}): Promise<Device> {
  const name = options.device ?? "auto";
  if (name === "meta") current = new Device("meta", null);
  else {
    const backend = await openBackend(name, options.threads);
    current = new Device(backend.name, backend);
  }
  return current;
}

/** The device new tensors are made on; throws before {@linkcode init}. */
export function currentDevice(): Device {
  if (!current) throw new Error("no device is open: call `await init()` first");
  return current;
}

/** Makes `device` the one new tensors are made on; gives back the one before. */
export function useDevice(device: Device | null): Device | null {
  const before = current;
  current = device;
  return before;
}

/** Runs what is recorded on the current device; see {@linkcode Device.flush}. */
export async function flush(): Promise<void> {
  await currentDevice().flush();
}

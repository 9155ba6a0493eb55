/**
 * Data parallelism: every rank holds the whole model and a share of each batch.
 *
 * @module
 */

import {
  bytesOf,
  defaultGenerator,
  type Device,
  type DType,
  type Shape,
  type Tensor,
  type Variable,
  where,
} from "../core/mod.ts";
import { onBackward } from "../core/autograd.ts";
import { hoisted, internally, recordsGradients, withoutGradients } from "../core/graph.ts";
import { recordHost } from "../core/host.ts";
import { scalar } from "../core/op.ts";
import { expand } from "../core/ops/expand.ts";
import {
  bucketLabel,
  bucketsOf,
  heldBy,
  type Named,
  packFloats,
  unpackFloats,
  type VariableBucket,
} from "./buckets.ts";
import { describeAll, fingerprint, isAlike, throwDifference } from "./checks.ts";
import type { ProcessGroup } from "./group.ts";
import type { GradientHook } from "./hooks.ts";
import { type JoinableBatch, joined } from "./join.ts";
import { rankGenerator } from "./random.ts";

/** What {@linkcode DistributedDataParallel} wraps: any `Module`. */
export interface ParallelModule {
  /** All parameters with their paths. */
  namedParameters(): readonly (readonly [name: string, parameter: Variable])[];
  /** Parameters and buffers by path. */
  stateDict(): ReadonlyMap<string, Variable>;
}

/** Options of {@linkcode DistributedDataParallel}. */
export interface ParallelOptions {
  /** The most bytes of gradients in one all-reduce. Default: 8 MiB. */
  readonly bucketBytes?: number;
  /** How a bucket is reduced: compressed, for instance. Default: the sum of the ranks' f32. */
  readonly hook?: GradientHook;
  /**
   * Whether ranks may differ in which parameters have a gradient. One that has none on a rank then
   * counts as zero there, and one that has none anywhere gets a gradient of zeros. Default false: ranks
   * that differ are an error.
   */
  readonly findUnused?: boolean;
}

/** The arguments of method `K` of `M`. */
export type MethodArguments<M, K extends string> = M extends
  { [P in K]: (...args: infer A) => unknown } ? A
  : never;
/** What method `K` of `M` returns. */
export type MethodResult<M, K extends string> = M extends { [P in K]: (...args: never) => infer R }
  ? R
  : never;

/**
 * Wraps a module so that `backward()` leaves the gradient of all ranks' batches together in every
 * rank's `grad`. The training loop stays what it is; every rank runs it on its own share of the data,
 * and holds the same weights at every step.
 *
 * **At the start** the parameters and buffers of rank 0 go to all ranks, with the first flush; names,
 * shapes and dtypes must agree. The default generator of each rank gets a stream of its own, so that
 * dropout differs from rank to rank.
 *
 * **The mean** is over all target tokens of all ranks: a rank's gradient weighs n_r / Σ n, with n_r the
 * targets of the batch that was given to {@linkcode loss}, or the number given to {@linkcode weigh};
 * else all ranks weigh the same. So N ranks give what one device gives on all their batches at once.
 *
 * **What is reduced** are the gradients of the parameters that require one at that time, in buckets,
 * from the last parameter to the first, while the rest of backward still runs: an all-reduce is a
 * step of the plan, and what is recorded of its result (the norm for clipping, the update) waits for it.
 * Where ranks differ, in parameters or in the number of steps, the flush rejects on every rank with what
 * differs.
 *
 * **Checkpoints and adapters** are saved from `module`, on rank 0; no name has a prefix.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { DistributedDataParallel, singleGroup } from "@graft/ml/dist";
 * import { Linear } from "@graft/ml/nn";
 * import { SGD } from "@graft/ml/optim";
 *
 * await init({ device: "cpu" });
 * const group = singleGroup(); // in a program: await initProcessGroup()
 * const ddp = new DistributedDataParallel(new Linear(2, 1), group);
 * const optimizer = new SGD(ddp.module.trainable(), { lr: 0.1 });
 * ddp.forward(tensor([[1, 2]])).square().sum().backward();
 * await optimizer.step();
 * optimizer.zeroGrad();
 * ```
 */
export class DistributedDataParallel<M extends ParallelModule> {
  /** What is wrapped. */
  readonly module: M;
  /** Who takes part. */
  readonly group: ProcessGroup;
  readonly #device: Device;
  readonly #bucketBytes: number;
  readonly #hook: GradientHook | null;
  readonly #findUnused: boolean;
  /** Parameters whose `grad` holds this rank's share only. */
  readonly #unreduced = new Set<Variable>();
  readonly #stop: () => void;
  /** Buffers as they were when all ranks had them alike. */
  readonly #buffers = new Map<Variable, { readonly node: unknown; readonly version: number }>();
  #weight: number | Tensor | null = null;
  #sync = true;
  #step = 0;

  /**
   * Every rank makes it at the same point of its program.
   *
   * @throws RangeError if the module has no parameter, or `bucketBytes` is not above 0.
   */
  constructor(module: M, group: ProcessGroup, options: ParallelOptions = {}) {
    const { bucketBytes = 8 * 2 ** 20, hook = null, findUnused = false } = options;
    if (!(bucketBytes > 0)) {
      throw new RangeError(
        `DistributedDataParallel: bucketBytes needs a number above 0, got ${bucketBytes}`,
      );
    }
    const named = module.namedParameters();
    if (named.length === 0) throw new RangeError("DistributedDataParallel: needs a parameter");
    this.module = module;
    this.group = group;
    this.#device = named[0][1].device;
    this.#bucketBytes = bucketBytes;
    this.#hook = hook;
    this.#findUnused = findUnused;
    const alone = group.size === 1 || this.#device.backend === null;
    this.#stop = alone ? () => {} : onBackward((gradients) => this.#reduce(gradients));
    if (alone) return;
    const generator = defaultGenerator();
    generator.load(rankGenerator(generator.state(), group.rank));
    this.#broadcastAll();
  }

  /** Calls the module's `forward`. */
  forward(...args: MethodArguments<M, "forward">): MethodResult<M, "forward"> {
    const module = this.module as unknown as { forward(...args: unknown[]): unknown };
    return module.forward(...args) as MethodResult<M, "forward">;
  }

  /** Calls the module's `loss`, whose mean is over the targets of its first argument, the batch. */
  loss(...args: MethodArguments<M, "loss">): MethodResult<M, "loss"> {
    const module = this.module as unknown as { loss(...args: unknown[]): unknown };
    if (recordsGradients()) this.#weight = weightOf(args[0]);
    return module.loss(...args) as MethodResult<M, "loss">;
  }

  /**
   * Says what the mean that the next `backward()` begins with is over: how many targets, rows or tokens
   * of this rank. Only for a loss that does not come from {@linkcode loss}. 0 leaves this rank out.
   *
   * @throws RangeError if `count` is negative or not a number.
   */
  weigh(count: number | Tensor): void {
    if (typeof count === "number" && !(count >= 0 && count < Infinity)) {
      throw new RangeError(`weigh: needs a number from 0 on, got ${count}`);
    }
    this.#weight = count;
  }

  /**
   * Gradient accumulation: a `backward()` inside `fn` adds this rank's share to `grad`; the first one
   * outside reduces what has been added up. Ranks still exchange their counts of targets, a few bytes.
   *
   * @example
   * ```ts ignore
   * for (const [i, batch] of batches.entries()) {
   *   const accumulate = () => ddp.loss(batch).div(batches.length).backward();
   *   if (i < batches.length - 1) ddp.noSync(accumulate);
   *   else accumulate();
   * }
   * ```
   */
  noSync<T>(fn: () => T): T {
    const before = this.#sync;
    this.#sync = false;
    try {
      return fn();
    } finally {
      this.#sync = before;
    }
  }

  /**
   * Goes through the batches of ranks that do not all have as many: a rank that has no more gets
   * batches whose targets are all ignored, until the last rank is through. Its optimizer so takes the
   * same steps. One small exchange a batch.
   */
  join<B extends JoinableBatch>(batches: Iterable<B> | AsyncIterable<B>): AsyncGenerator<B> {
    return joined(this.group, batches);
  }

  /** Lets go of the module: gradients are this rank's own from here on. */
  close(): void {
    this.#stop();
  }

  /** As {@linkcode close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Records that parameters and buffers become those of rank 0. */
  #broadcastAll(): void {
    const all = new Map<string, Variable>(this.module.namedParameters());
    for (const [name, variable] of this.module.stateDict()) {
      if (!all.has(name)) all.set(name, variable);
    }
    const named = [...all].flatMap(heldBy);
    const lines = describeAll(named);
    const own = fingerprint(lines);
    const agreed = async (): Promise<void> => {
      const what = "DistributedDataParallel: the model";
      const sums = await this.group.allReduce(Float64Array.from(own), { label: what });
      if (isAlike(sums, own, this.group.size)) return;
      await throwDifference(this.group, what, lines, "");
    };
    this.#broadcast(named, agreed);
    for (const [, buffer] of this.#buffersNow()) this.#remember(buffer);
  }

  /** Remembers the value that has just been assigned to `buffer`. */
  #remember(buffer: Variable): void {
    const node = this.#device.assignments.get(buffer);
    this.#buffers.set(buffer, { node, version: buffer.version + 1 });
  }

  /** Records that `named` become what they are on rank 0. `first` runs before. */
  #broadcast(named: readonly Named[], first: () => Promise<void>): void {
    let token: Tensor | null = null;
    let before: (() => Promise<void>) | null = first;
    for (const bucket of bucketsOf(named, this.#bucketBytes, ({ dtype }) => dtype)) {
      const inputs: Tensor[] = [...bucket.variables];
      // A bucket is there before the next one is read: the host holds one at a time.
      if (token) inputs.push(token);
      const outputs = bucket.variables.map((v) => ({ shape: v.shape, dtype: v.dtype as DType }));
      const check = before;
      before = null;
      const results = record({
        label: `the broadcast of ${bucketLabel(bucket)}`,
        device: this.#device,
        inputs,
        outputs: [...outputs, { shape: [], dtype: "f32" }],
        run: async (bytes) => {
          await check?.();
          const parts = outputs.map(({ shape, dtype }, i) =>
            new Uint8Array(bytes[i], 0, bytesOfShape(shape, dtype))
          );
          const sent = await this.group.broadcast(joinBytes(parts), { label: bucketLabel(bucket) });
          return [...splitBytes(sent, parts), new Float32Array(1)];
        },
      });
      token = results.pop()!;
      bucket.variables.forEach((variable, i) => variable.assign(results[i]));
    }
  }

  /** Variables that are no parameters. */
  #buffersNow(): Named[] {
    const parameters = new Set(this.module.namedParameters().map(([, p]) => p));
    return [...this.module.stateDict()].filter(([, v]) => !parameters.has(v));
  }

  /** Records that buffers which a forward pass has assigned become those of rank 0. */
  #broadcastChanged(): void {
    const changed = this.#buffersNow().filter(([, v]) => {
      const known = this.#buffers.get(v);
      const pending = this.#device.assignments.get(v);
      return pending ? pending !== known?.node : v.version !== known?.version;
    });
    if (changed.length === 0) return;
    const label = `buffers of step ${this.#step}`;
    this.#broadcast(changed, () => this.group.barrier({ label }));
    for (const [, buffer] of changed) this.#remember(buffer);
  }

  /** The hook of backward: turns this rank's gradients into those of all. */
  #reduce(gradients: Map<Variable, Tensor>): void {
    const trainable = this.module.namedParameters().filter(([, p]) => p.requiresGrad);
    if (!trainable.some(([, p]) => gradients.has(p))) return;
    internally(() => hoisted(() => withoutGradients(() => this.#record(trainable, gradients))));
    this.#broadcastChanged();
    this.#weight = null;
    this.#step++;
  }

  #record(trainable: readonly Named[], gradients: Map<Variable, Tensor>): void {
    const waits = ([, p]: Named): boolean => this.#unreduced.has(p) && p.grad !== null;
    const used = this.#findUnused
      ? trainable
      : trainable.filter((named) => gradients.has(named[1]) || (this.#sync && waits(named)));
    const weight = this.#recordWeight(used);
    const shares = new Map<Variable, Tensor>();
    for (const named of used) {
      const [, p] = named;
      const g = gradients.get(p);
      // A rank that does not count may have a mean over nothing: 0 · NaN is NaN.
      const share = g
        ? where(weight.gt(0), g.to("f32").mul(weight), 0)
        : expand(scalar(0, "f32", this.#device), p.shape);
      const held = p.grad?.to("f32") ?? null;
      if (this.#sync) {
        shares.set(p, waits(named) ? held!.add(share) : share);
        if (waits(named)) p.grad = null;
      } else {
        // What has been reduced before counts once when all ranks' shares are added up.
        const reduced = held !== null && !waits(named);
        if (reduced) p.grad = null;
        const total = reduced ? held!.div(this.group.size).add(share) : share;
        gradients.set(p, total.to(p.dtype));
        this.#unreduced.add(p);
      }
    }
    if (!this.#sync) return;
    for (const bucket of bucketsOf(used.toReversed(), this.#bucketBytes)) {
      const sums = this.#recordBucket(bucket, bucket.variables.map((p) => shares.get(p)!));
      bucket.variables.forEach((p, i) => gradients.set(p, sums[i].to(p.dtype)));
    }
    this.#unreduced.clear();
  }

  /** Records the exchange of counts; gives this rank's share of them, a scalar. */
  #recordWeight(used: readonly Named[]): Tensor {
    const { group } = this;
    const count = this.#weight ?? 1;
    const step = this.#step;
    const sync = this.#sync;
    const lines = [
      `buckets of ${this.#bucketBytes} bytes, ${this.#hook?.name ?? "not compressed"}`,
      ...describeAll(used),
    ];
    const own = fingerprint(lines);
    const what = `the gradients of backward ${step}${sync ? "" : " (noSync)"}`;
    const [weight] = record({
      label: "the counts of targets",
      device: this.#device,
      inputs: typeof count === "number" ? [] : [count.to("f32").reshape()],
      outputs: [{ shape: [], dtype: "f32" }],
      run: async ([bytes]) => {
        const mine = typeof count === "number" ? count : new Float32Array(bytes)[0];
        const sums = await group.allReduce(Float64Array.of(...own, mine), { label: what });
        if (!isAlike(sums, own, group.size)) {
          await throwDifference(
            group,
            `DistributedDataParallel: ${what}`,
            lines,
            "; where ranks may differ in what they use, set `findUnused`",
          );
        }
        const total = sums[own.length];
        return [Float32Array.of(total > 0 ? mine / total : 0)];
      },
    });
    return weight;
  }

  /** Records the sum over all ranks of their shares. */
  #recordBucket(bucket: VariableBucket, shares: readonly Tensor[]): Tensor[] {
    const { group } = this;
    const hook = this.#hook;
    const label = bucketLabel(bucket);
    return record({
      label: `the all-reduce of ${label}`,
      device: this.#device,
      inputs: shares,
      outputs: shares.map(({ shape }) => ({ shape, dtype: "f32" })),
      run: async (bytes) => {
        const data = packFloats(bucket, bytes);
        const sums = hook
          ? await hook.reduce(bucket, data, group)
          : await group.allReduce(data, { label });
        return unpackFloats(bucket, sums);
      },
    });
  }
}

function record(step: Parameters<typeof recordHost>[0]): Tensor[] {
  return internally(() => hoisted(() => withoutGradients(() => recordHost(step))));
}

/** How many targets of a batch count: a number where the host knows it. */
function weightOf(batch: unknown): number | Tensor | null {
  const { targetCount, targets } = (batch ?? {}) as {
    readonly targetCount?: unknown;
    readonly targets?: unknown;
  };
  if (typeof targetCount === "number") return targetCount;
  if (targets && typeof targets === "object" && "node" in targets) {
    return internally(() => (targets as Tensor).ne(-100).to("f32").sum());
  }
  return null;
}

function bytesOfShape(shape: Shape, dtype: DType): number {
  return shape.reduce((n, d) => n * d, 1) * bytesOf(dtype);
}

function joinBytes(parts: readonly Uint8Array<ArrayBuffer>[]): Uint8Array<ArrayBuffer> {
  if (parts.length === 1) return parts[0];
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function splitBytes(
  all: Uint8Array<ArrayBuffer>,
  like: readonly Uint8Array[],
): Uint8Array<ArrayBuffer>[] {
  let at = 0;
  return like.map(({ length }) => all.subarray(at, at += length));
}

/**
 * What lowering gives: steps that have no memory yet.
 *
 * @module
 */

import type { Storage } from "./body.ts";
import type { Node } from "./graph.ts";
import type { Kernel } from "./kernel.ts";

/** Where a host step stands: its inputs are read at `begin`, its outputs written at `end`. */
export interface HostMark {
  readonly kind: "begin" | "end";
  readonly label: string;
}

/** A kernel before it has memory, or a mark of a host step. */
export interface LoweredStep {
  kernel: Kernel | HostMark;
  readonly inputs: Storage[];
  readonly outputs: Storage[];
  /** The number leaves that fill the kernel's scalars. */
  readonly scalars: Node[];
  /** The node this step computes. */
  readonly node: Node;
}

/** A step that runs a kernel. */
export type KernelStep = LoweredStep & { readonly kernel: Kernel };

/** Whether `step` runs a kernel. */
export function isKernel(step: LoweredStep): step is KernelStep {
  return step.kernel.kind === "loop" || step.kernel.kind === "call";
}

/** Sets for each storage which step touches it first and which last. */
export function setLifetimes(steps: readonly LoweredStep[]): void {
  const seen = new Set<Storage>();
  steps.forEach((step, at) => {
    for (const storage of [...step.inputs, ...step.outputs]) {
      if (!seen.has(storage)) storage.first = at;
      seen.add(storage);
      storage.last = at;
    }
  });
}

/** What lowering gives. */
export interface Lowered {
  readonly steps: LoweredStep[];
  readonly storages: ReadonlyMap<Node, Storage>;
}

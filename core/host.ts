/**
 * Host steps: asynchronous work between the kernels of a plan. A host step reads bytes from the device,
 * hands them to a function of its own (an all-reduce), and writes what that gives back, while the
 * kernels that do not wait for it run. So a collective is recorded like any op: what is computed from
 * its result, such as a gradient's norm, is recorded before anything has run.
 *
 * @module
 */

import type { Storage } from "./body.ts";
import type { Device } from "./device.ts";
import { type HostFunction, Node, type Output, record } from "./graph.ts";
import { defineOp, type HostOp, pickOp } from "./op.ts";
import type { LoweredStep } from "./steps.ts";
import { Tensor } from "./tensor.ts";

const hostOp: HostOp = defineOp<HostOp>({
  kind: "host",
  name: "host",
  gradient: null,
  samples: [],
});

/** What {@linkcode recordHost} needs to know. */
export interface HostStep {
  /** For errors and profiles, part of the plan's key. */
  readonly label: string;
  /** Where its inputs and outputs lie. */
  readonly device: Device;
  readonly inputs: readonly Tensor[];
  /** Shapes and dtypes of what it gives; at least one. */
  readonly outputs: readonly Output[];
  /**
   * Runs once. It is given the bytes of each input, row-major, and gives those of each output. What it
   * throws rejects the flush.
   */
  readonly run: HostFunction;
}

/**
 * Records a host step; gives its outputs. It begins when its inputs have been computed, but not before
 * the host step recorded before it on the device: so that all ranks begin theirs in the same order.
 */
export function recordHost({ label, device, inputs, outputs, run }: HostStep): Tensor[] {
  const sources = inputs.map((t) => t.node);
  const node = new Node(hostOp, sources, outputs[0], { label }, device, false, null, outputs);
  node.host = run;
  node.after = Math.max(device.lastHost, ...node.inputs.map((i) => i.after));
  device.lastHost = node.after;
  return outputs.map((output, index) => {
    const pick = record(pickOp, [node], output, { index });
    pick.after = node.after;
    return new Tensor(pick);
  });
}

/** The storages that a host step writes. */
export interface HostOutputs {
  readonly node: Node;
  readonly outputs: readonly Storage[];
}

/**
 * Puts the end of each host step just before the first step that reads what it gives, or at the end of
 * the plan; so as much as can be runs in between.
 */
export function placeEnds(steps: LoweredStep[], hosts: readonly HostOutputs[]): void {
  const ends: { at: number; step: LoweredStep }[] = hosts.map(({ node, outputs }) => {
    const own = new Set(outputs);
    const reader = steps.findIndex((s) => [...s.inputs, ...s.outputs].some((i) => own.has(i)));
    return {
      at: reader < 0 ? steps.length : reader,
      step: {
        node,
        inputs: [],
        outputs: [...outputs],
        scalars: [],
        kernel: { kind: "end", label: node.attrs.label as string },
      },
    };
  });
  // From the back, so that the places before stay what they are; of those at one place, in order.
  ends.sort((a, b) => a.at - b.at);
  for (const { at, step } of ends.reverse()) steps.splice(at, 0, step);
}

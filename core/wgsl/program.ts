/**
 * What a WGSL generator is told about the device, and what it gives back.
 *
 * @module
 */

/** The device code is generated for. */
export interface WgslTarget {
  /** A CPU behind a WebGPU driver: workgroup memory and barriers then cost more than they save. */
  readonly software: boolean;
  /** Subgroup operations, where the device has them and all its subgroups are of one size. */
  readonly subgroup: Subgroup | null;
  /** Most invocations in a workgroup. */
  readonly maxInvocations: number;
  /** Most bytes of workgroup memory. */
  readonly maxWorkgroupBytes: number;
  /** Most storage buffers a pass may bind. */
  readonly maxStorageBuffers: number;
  /** Most workgroups along one dimension of a dispatch. */
  readonly maxWorkgroups: number;
}

/** The subgroups of a device. */
export interface Subgroup {
  /** Invocations of one: the first `size` of a workgroup are one, and so on. */
  readonly size: number;
  /** What a module that uses them begins with, if anything. */
  readonly directive: string;
}

/**
 * What stands behind a binding: an input or output of the kernel, its workspace, its scalars or the
 * pass's parameters.
 */
export type WgslSource =
  | { readonly kind: "input" | "output"; readonly index: number }
  | { readonly kind: "workspace" }
  | { readonly kind: "scalars" }
  | { readonly kind: "parameters" };

/** Binding number i of a pass, where i is its place in {@linkcode WgslPass.bindings}. */
export interface WgslBinding {
  readonly source: WgslSource;
  readonly write: boolean;
}

/** One dispatch. Its entry point is `main`; its bindings are those of group 0. */
export interface WgslPass {
  readonly code: string;
  readonly bindings: readonly WgslBinding[];
  /** The words of its `parameters` binding: passes that differ in them alone share a pipeline. */
  readonly parameters: Uint32Array<ArrayBuffer>;
  /** Workgroups along x, y and z. */
  readonly workgroups: readonly [number, number, number];
  /** Floating-point operations, roughly: long command lists are cut by it. */
  readonly cost: number;
}

/** A kernel's code: passes that run in order. */
export interface WgslProgram {
  readonly passes: readonly WgslPass[];
  /** Bytes of workspace, 0 for none. */
  readonly workspace: number;
}

/** A dispatch of `count` workgroups, folded into two dimensions where one does not hold them. */
export function dispatchOf(count: number, target: WgslTarget): [number, number, number] {
  if (count <= target.maxWorkgroups) return [Math.max(count, 1), 1, 1];
  const rows = Math.ceil(count / target.maxWorkgroups);
  return [Math.ceil(count / rows), rows, 1];
}

/**
 * Invocations of a workgroup that use no workgroup memory on a software device: what the driver runs
 * side by side, a subgroup where there are any.
 */
export function lanesOf(target: WgslTarget): number {
  return target.subgroup?.size ?? 8;
}

/** The largest power of two that is at most `n` (1 for less). */
export function powerBelow(n: number): number {
  return n < 2 ? 1 : 2 ** Math.floor(Math.log2(n));
}

/** The smallest power of two that is at least `n`. */
export function powerAbove(n: number): number {
  return n < 2 ? 1 : 2 ** Math.ceil(Math.log2(n));
}

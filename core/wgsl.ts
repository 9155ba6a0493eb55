/**
 * Generating WGSL: what the webgpu backend and the ops' hand-written kernels share.
 *
 * @module
 */

export * from "./wgsl/program.ts";
export * from "./wgsl/module.ts";
export * from "./wgsl/expr.ts";
export * from "./wgsl/space.ts";
export * from "./wgsl/pointwise.ts";
export * from "./wgsl/reduce.ts";

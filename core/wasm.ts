/**
 * Assembling WASM: what the cpu backend and the ops' hand-written kernels share.
 *
 * @module
 */

export * from "./wasm/code.ts";
export * from "./wasm/func.ts";
export * from "./wasm/vectors.ts";
export * from "./wasm/elements.ts";
export * from "./wasm/program.ts";
export * from "./wasm/tile.ts";
export * from "./wasm/pack.ts";

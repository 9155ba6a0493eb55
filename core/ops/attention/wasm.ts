/**
 * Attention in WASM, in blocks of queries: no [Tq, Tk] matrix is held.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import type { WasmProgram, WasmTarget } from "../../wasm.ts";
import { backwardProgram } from "./wasm_backward.ts";
import { forwardProgram } from "./wasm_forward.ts";

/** The program of attention: q, k, v, (mask) → out [B, Tq, H, D], log-sum-exp [B, H, Tq]. */
export function attentionWasm(call: CallKernel, target: WasmTarget): WasmProgram {
  return forwardProgram(call, target);
}

/**
 * The program of its gradient: q, k, v, (mask), dout, log-sum-exp, delta → dq [B, Tq, H, D] and dk, dv
 * [B, Tk, Hkv, D].
 */
export function attentionBackwardWasm(call: CallKernel, target: WasmTarget): WasmProgram {
  return backwardProgram(call, target);
}

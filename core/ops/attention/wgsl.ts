/**
 * Attention in WGSL, in blocks: no [Tq, Tk] matrix is held (Dao et al. 2022). Backward runs one pass
 * over the queries and one over the keys, so that no two workgroups add to one element. A software
 * device works row by row instead, because there workgroup memory costs more than it saves.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { countOf, type WgslProgram, type WgslTarget } from "../../wgsl.ts";
import { keyGradientPass, queryGradientPass } from "./wgsl_backward.ts";
import { decodePass } from "./wgsl_decode.ts";
import { forwardPass } from "./wgsl_forward.ts";
import { forwardRows, keyGradientRows, queryGradientRows } from "./wgsl_rows.ts";

// With fewer queries than this, a block of them would be mostly empty.
const FEW_QUERIES = 5;

// A software device holds rows in registers up to a depth: beyond, that takes too long to compile, or
// is no faster. Lanes that share out what they load hold more.
function byRows(call: CallKernel, target: WgslTarget): boolean {
  return target.software && call.inputs[0].shape[3] <= (target.subgroup ? 256 : 64);
}

/** The program of attention: q, k, v, (mask) → out [B, Tq, H, D], log-sum-exp [B, H, Tq]. */
export function attentionWgsl(call: CallKernel, target: WgslTarget): WgslProgram {
  if (countOf(call.outputs[0].shape) === 0) return { passes: [], workspace: 0 };
  const few = call.inputs[0].shape[2] < FEW_QUERIES;
  const pass = few ? decodePass : byRows(call, target) ? forwardRows : forwardPass;
  return { passes: [pass(call, target)], workspace: 0 };
}

/**
 * The program of its gradient: q, k, v, (mask), dout, log-sum-exp, delta → dq [B, Tq, H, D] and dk, dv
 * [B, Tk, Hkv, D].
 */
export function attentionBackwardWgsl(call: CallKernel, target: WgslTarget): WgslProgram {
  const [queryPass, keyPass] = byRows(call, target)
    ? [queryGradientRows, keyGradientRows]
    : [queryGradientPass, keyGradientPass];
  const passes = [];
  if (countOf(call.outputs[0].shape) > 0) passes.push(queryPass(call, target));
  if (countOf(call.outputs[1].shape) > 0) {
    // Both at once bind all inputs and two outputs; where that is too many, one after the other.
    const both = call.inputs.length + 2 <= target.maxStorageBuffers;
    if (both) passes.push(keyPass(call, target, { dk: true, dv: true }));
    else {
      passes.push(keyPass(call, target, { dk: true, dv: false }));
      passes.push(keyPass(call, target, { dk: false, dv: true }));
    }
  }
  return { passes, workspace: 0 };
}

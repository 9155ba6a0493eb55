import { customFunction } from "../autograd.ts";
import { recordsGradients } from "../graph.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";
import { reshapeOp } from "./reshape.ts";
import { where } from "./where.ts";

/** Settings of {@linkcode crossEntropy}. */
export interface CrossEntropyOptions {
  /** Rows with this target do not count. Default -100. */
  readonly ignoreIndex?: number;
  /** `mean` over the rows that count (0 where none does), `sum`, or `none`: one loss a row. */
  readonly reduction?: "mean" | "sum" | "none";
}

/**
 * −log softmax(logits)[target], in nats. `logits` [N, V] of f32, `targets` [N] of i32.
 *
 * Throws where shapes do not fit or a host target is neither in [0, V) nor the ignored one.
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const { ignoreIndex = -100, reduction = "mean" } = options;
  if (logits.rank !== 2) {
    throw new RangeError(`crossEntropy: needs logits [N, V], got shape ${show(logits.shape)}`);
  }
  checkTargets("crossEntropy", targets, logits.shape[0], logits.shape[1], ignoreIndex);
  const valid = targets.ne(ignoreIndex); // [N]
  let found: Tensor;
  const losses = customFunction([logits], ([logits]) => {
    const { losses, lse } = rowLosses(logits, targets, valid);
    found = lse;
    return losses;
  }, ({ g, inputs: [logits] }) => {
    // Forward's sum is at hand, but a gradient to be differentiated has to know its recipe.
    const lse = recordsGradients() ? logits.logsumexp(1, true) : found;
    const scale = where(valid, g, 0).unsqueeze(1); // [N, 1]
    return [logitsGradient(logits, lse, targets).mul(scale)];
  });
  if (reduction === "none") return losses;
  return reduction === "sum" ? losses.sum() : losses.sum().div(countOf(valid));
}

/** Losses [N] of rows, 0 where not valid, and their log-sum-exp [N, 1]. */
export function rowLosses(
  logits: Tensor,
  targets: Tensor,
  valid: Tensor,
): { losses: Tensor; lse: Tensor } {
  const lse = logits.logsumexp(1, true); // [N, 1]
  // An ignored target reads as 0; on host data the range was checked, so this names no element twice.
  const safe = where(valid, targets, 0).detach().unsqueeze(1);
  const picked = logits.gather(1, safe); // [N, 1]
  return { losses: where(valid, lse.sub(picked).reshape(targets.shape), 0), lse };
}

/** softmax(logits) − onehot(targets), [N, V]: the gradient of each row's loss. */
export function logitsGradient(logits: Tensor, lse: Tensor, targets: Tensor): Tensor {
  const column = iota(logits.shape, 1, "i32", logits.device);
  const hit = targets.unsqueeze(1).eq(column).to(logits.dtype);
  return logits.sub(lse).exp().sub(hit);
}

/** How many rows count, at least 1. */
export function countOf(valid: Tensor): Tensor {
  return valid.to("f32").sum().maximum(1);
}

/** Checks targets [N]. */
export function checkTargets(
  what: string,
  targets: Tensor,
  rows: number,
  classes: number,
  ignoreIndex: number,
): void {
  if (targets.rank !== 1 || targets.shape[0] !== rows || targets.dtype !== "i32") {
    throw new RangeError(
      `${what}: needs targets i32[${rows}], got ${targets.dtype}${show(targets.shape)}`,
    );
  }
  let { node } = targets;
  while (node.op === reshapeOp) [node] = node.inputs; // of a batch [B, T], the same elements in order
  const { value } = node;
  if (value?.kind !== "host") return;
  const list = new Int32Array(value.data.buffer, value.data.byteOffset, targets.size);
  list.forEach((t, i) => {
    if (t !== ignoreIndex && (t < 0 || t >= classes)) {
      throw new RangeError(
        `${what}: target ${t} at position ${i} is not in [0, ${classes}), nor ${ignoreIndex}, the ignored one`,
      );
    }
  });
}

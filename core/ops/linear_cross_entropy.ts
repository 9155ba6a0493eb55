import { customFunction } from "../autograd.ts";
import { recordsGradients } from "../graph.ts";
import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { concatenate } from "./concatenate.ts";
import { checkTargets, countOf, logitsGradient, rowLosses } from "./cross_entropy.ts";
import { stored } from "./stored.ts";
import { where } from "./where.ts";

/** Settings of {@linkcode linearCrossEntropy}. */
export interface LinearCrossEntropyOptions {
  /** Rows with this target do not count. Default -100. */
  readonly ignoreIndex?: number;
  /** `mean` over the rows that count (0 where none does), or `sum`. */
  readonly reduction?: "mean" | "sum";
  /** Rows of logits held at a time; default: as many as make about 2 million logits. */
  readonly chunk?: number;
}

/**
 * Cross-entropy of the output head, `crossEntropy(hidden · weightᵀ, targets)`, a chunk of rows at a
 * time: all logits [N, V] are never held. The gradients are made while a chunk's logits are at hand
 * (Hsu et al. 2024, "Liger kernel", section 3.2), so backward multiplies by a number only.
 *
 * `hidden` [N, D], `weight` [V, D], `targets` i32 [N]. A scalar, in nats.
 */
export function linearCrossEntropy(
  hidden: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: LinearCrossEntropyOptions = {},
): Tensor {
  const { ignoreIndex = -100, reduction = "mean" } = options;
  if (hidden.rank !== 2 || weight.rank !== 2 || hidden.shape[1] !== weight.shape[1]) {
    throw new RangeError(
      `linearCrossEntropy: needs hidden [N, D] and weight [V, D], got ${show(hidden.shape)} and ${
        show(weight.shape)
      }`,
    );
  }
  const [rows] = hidden.shape;
  const [classes] = weight.shape;
  checkTargets("linearCrossEntropy", targets, rows, classes, ignoreIndex);
  const chunk = Math.max(1, Math.min(rows, options.chunk ?? Math.floor(2 ** 21 / classes)));
  const valid = targets.ne(ignoreIndex);
  let hiddenGradient: Tensor | null = null;
  let weightGradient: Tensor | null = null;
  const total = customFunction(
    [hidden, weight],
    ([hidden, weight]) => {
      const losses: Tensor[] = [];
      const parts: Tensor[] = [];
      for (let at = 0; at < rows; at += chunk) {
        const end = Math.min(rows, at + chunk);
        const h = hidden.slice(0, at, end); // [R, D]
        const t = targets.slice(0, at, end);
        const ok = valid.slice(0, at, end);
        const logits = h.matmul(weight.transpose()); // [R, V]
        const { losses: row, lse } = rowLosses(logits, t, ok);
        losses.push(row.sum());
        // Recorded here, so that it runs here: later, the logits are gone. Unused, it never runs.
        const d = where(ok.unsqueeze(1), logitsGradient(logits, lse, t), 0); // [R, V]
        if (hidden.node.needsGrad) parts.push(d.matmul(weight));
        if (weight.node.needsGrad) {
          const dw = d.transpose().matmul(h); // [V, D]
          weightGradient = weightGradient ? stored(weightGradient.add(dw)) : dw;
        }
      }
      if (parts.length > 0) hiddenGradient = concatenate(parts, 0);
      return losses.reduce((a, b) => a.add(b));
    },
    ({ g, inputs: [hidden, weight] }) => {
      if (!recordsGradients()) {
        return [hiddenGradient?.mul(g) ?? null, weightGradient?.mul(g) ?? null];
      }
      // A gradient that is itself differentiated has to be composed.
      const logits = hidden.matmul(weight.transpose());
      const d = where(
        valid.unsqueeze(1),
        logitsGradient(logits, logits.logsumexp(1, true), targets),
        0,
      ).mul(g);
      return [d.matmul(weight), d.transpose().matmul(hidden)];
    },
  );
  return reduction === "sum" ? total : total.div(countOf(valid));
}

import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/** Rows of `weight` [V, D] for `ids` [...]: [..., D]. Throws on an id not in [0, V). */
export function embedding(weight: Tensor, ids: Tensor): Tensor {
  if (weight.rank !== 2) {
    throw new RangeError(`embedding: needs a weight [V, D], got shape ${show(weight.shape)}`);
  }
  return weight.take(ids, 0);
}

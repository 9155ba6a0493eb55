import type { Tensor } from "../tensor.ts";
import { concatenate } from "./concatenate.ts";

/** Tensors of one shape along a new axis. */
export function stack(tensors: readonly Tensor[], axis = 0): Tensor {
  return concatenate(tensors.map((t) => t.unsqueeze(axis)), axis);
}

import type { Tensor } from "../tensor.ts";
import { checkIndices } from "./fetch.ts";
import { iota } from "./iota.ts";

/** Indices [...] as rows [..., depth] of zeros with a one. */
export function oneHot(indices: Tensor, depth: number): Tensor {
  checkIndices("oneHot", indices, depth);
  const shape = [...indices.shape, depth];
  const place = iota(shape, indices.rank, indices.dtype, indices.device);
  return indices.unsqueeze(-1).eq(place).to("f32");
}

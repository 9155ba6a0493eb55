import { customFunction } from "../autograd.ts";
import type { Tensor } from "../tensor.ts";
import { siluGradient } from "./silu.ts";

/**
 * silu(gate) · up, the gated unit of Llama (Shazeer 2020, "GLU variants improve transformer"). Backward
 * computes silu again: only gate and up are held.
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return customFunction(
    [gate, up],
    ([gate, up]) => gate.silu().mul(up),
    ({ g, inputs: [gate, up] }) => [siluGradient(gate, g.mul(up)), g.mul(gate.silu())],
  );
}

import type { CallKernel, Operand } from "../../kernel.ts";
import { kernel, type KernelOp, recordKernel, type Sample } from "../../op.ts";
import type { Tensor } from "../../tensor.ts";
import { dequantize, type Packing, perWord } from "../dequantize.ts";
import { quantizedMatmulWasm } from "./wasm.ts";
import { quantizedMatmulWgsl } from "./wgsl.ts";

/**
 * The op: x [M, C] · Wᵀ -> [M, R], or where `turned` x [M, R] · W -> [M, C], for a packed W [R, C]. Its
 * codes become numbers where the kernel loads them: W is never in memory as floats.
 */
export const quantizedMatmulOp: KernelOp = kernel({
  code: {
    name: "quantized_matmul",
    accepts: (index: number, { shape, strides, offset }: Operand) =>
      index === 0
        ? strides[0] === 1 || strides[1] === 1 || shape[0] === 1 || shape[1] === 1
        : offset === 0 && (strides[0] === 1 || shape[0] === 1),
    epilogue: true,
    wgsl: (call: CallKernel, target) => quantizedMatmulWgsl(call, target),
    wasm: (call: CallKernel, target) => quantizedMatmulWasm(call, target),
  },
  gradient: ({ g, inputs: [, words, scales], attrs, needs }) => [
    needs[0] ? product(g, words, scales, attrs as unknown as Packing, !attrs.turned) : null,
    null,
    null,
  ],
  samples: [
    ...both("few rows,", 3, { format: "int8", rows: 5, columns: 12, block: 12 }),
    ...both("few rows,", 3, { format: "nf4", rows: 5, columns: 16, block: 8 }),
    ...both("blocks of half a vector,", 11, { format: "int8", rows: 19, columns: 36, block: 4 }),
    ...both("many rows,", 70, { format: "nf4", rows: 37, columns: 144, block: 48 }),
    sample("one row,", 1, { format: "nf4", rows: 131, columns: 120, block: 40 }, false),
  ],
});

/**
 * x Wᵀ for the packed W [R, C] that `words` and `scales` hold: [M, C] -> [M, R], or where `turned` x W:
 * [M, R] -> [M, C]. The gradient flows to x alone.
 */
export function product(
  x: Tensor,
  words: Tensor,
  scales: Tensor,
  { format, rows, columns, block }: Packing,
  turned = false,
): Tensor {
  const shape = [x.shape[0], turned ? columns : rows];
  const attrs = { format, rows, columns, block, turned };
  return recordKernel(quantizedMatmulOp, [x, words, scales], [{ shape, dtype: "f32" }], attrs)[0];
}

/** Both products of `m` rows with a matrix packed like this. */
function both(name: string, m: number, packing: Packing): Sample[] {
  return [false, true].map((turned) => sample(name, m, packing, turned));
}

function sample(name: string, m: number, packing: Packing, turned: boolean): Sample {
  const { format, rows, columns, block } = packing;
  const size = rows * columns;
  return {
    name: `${name} ${format}, ${turned ? "x W" : "x Wᵀ"}`,
    inputs: [
      { shape: [m, turned ? rows : columns] },
      { shape: [size / perWord(format)], dtype: "u32", low: 0, high: 2 ** 32 },
      { shape: [size / block], low: 0.5, high: 1, constant: true },
    ],
    call: (x, words, scales) => product(x, words, scales, packing, turned),
    reference: (x, words, scales) => {
      const w = dequantize(words, scales, packing);
      return x.matmul(turned ? w : w.transpose());
    },
    differentiable: size < 1000,
  };
}

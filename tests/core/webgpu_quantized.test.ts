// Products with packed matrices on webgpu as for a real GPU, whose tiles conformance does not reach
// on a software device, against sums in double precision.
import { quantizedMatmulWgsl } from "../../core/ops/quantized_matmul/wgsl.ts";
import { NF4 } from "../../core/ops/nf4.ts";
import { close, element, gpuTest, type LabOperand, operand, runCall } from "./webgpu_lab.ts";

/** Words of any bits, as an operand. */
function anyWords(count: number): LabOperand {
  let state = 9;
  const values = Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state ^ state >>> 13) >>> 0;
  });
  return { dtype: "u32", shape: [count], strides: [1], offset: 0, values };
}

const SHAPES: [m: number, rows: number, columns: number, block: number][] = [
  [3, 12, 48, 24],
  [70, 33, 136, 136],
  [130, 72, 40, 8],
];

for (const [m, rows, columns, block] of SHAPES) {
  for (const format of ["int8", "nf4"] as const) {
    gpuTest(`quantized matmul ${m} x ${rows}x${columns}, ${format}, as on a GPU`, async () => {
      const each = format === "nf4" ? 8 : 4, bits = 32 / each;
      const words = anyWords(rows * columns / each);
      const scales = operand([rows * columns / block]);
      const value = (row: number, column: number): number => {
        const at = row * columns + column;
        const code = (words.values[Math.floor(at / each)] >>> (bits * (at % each))) % 2 ** bits;
        const level = format === "nf4" ? NF4[code] : (code > 127 ? code - 256 : code) / 127;
        return level * scales.values[Math.floor(at / block)];
      };
      for (const turned of [false, true]) {
        const [n, k] = turned ? [columns, rows] : [rows, columns];
        const x = operand([m, k]);
        const want = Array.from({ length: m * n }, (_, i) => {
          const [line, j] = [Math.floor(i / n), i % n];
          let sum = 0;
          for (let l = 0; l < k; l++) {
            sum += element(x, line, l) * (turned ? value(l, j) : value(j, l));
          }
          return sum;
        });
        const [got] = await runCall({
          wgsl: quantizedMatmulWgsl,
          inputs: [x, words, scales],
          outputs: [{ shape: [m, n] }],
          attrs: { format, rows, columns, block, turned },
          as: "as on a GPU",
        });
        close(got, want, 1e-5, turned ? "x W" : "x Wᵀ");
      }
    });
  }
}

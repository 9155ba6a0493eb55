// Scattered rows on webgpu against a loop.
import { scatterRowsWgsl } from "../../core/ops/scatter_rows/wgsl.ts";
import { close, element, gpuTest, operand, runCall } from "./webgpu_lab.ts";

for (const [n, d, rows] of [[9, 6, 5], [40, 1, 70], [300, 130, 17], [3, 4, 1], [0, 4, 6]]) {
  gpuTest(`scatter rows: ${n} rows of ${d} over ${rows}`, async () => {
    const source = operand([n, d]);
    // Some indices lie outside, and are skipped.
    const values = Array.from({ length: n }, (_, i) => (i * 7919) % (rows + 3) - 1);
    const index = { ...operand([n], [0], { dtype: "i32" }), values };
    const want = new Array<number>(rows * d).fill(0);
    values.forEach((row, i) => {
      if (row < 0 || row >= rows) return;
      for (let c = 0; c < d; c++) want[row * d + c] += element(source, i, c);
    });
    const [got] = await runCall({
      wgsl: scatterRowsWgsl,
      inputs: [index, source],
      outputs: [{ shape: [rows, d] }],
    });
    close(got, want, 1e-5);
  });
}

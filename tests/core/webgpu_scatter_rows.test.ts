// Scattered rows on webgpu against a loop, to the bit: as for the device at hand and as for a real GPU.
import { scatterRowsWgsl } from "../../core/ops/scatter_rows/wgsl.ts";
import { close, element, gpuTest, operand, runCall } from "./webgpu_lab.ts";

for (const [n, d, rows] of [[9, 6, 5], [40, 1, 70], [300, 132, 17], [3, 4, 1], [0, 4, 6]]) {
  gpuTest(`scatter rows: ${n} rows of ${d} over ${rows}`, async () => {
    // Some indices lie outside, and are skipped.
    const values = Array.from({ length: n }, (_, i) => (i * 7919) % (rows + 3) - 1);
    const index = { ...operand([n], [0], { dtype: "i32" }), values };
    for (const offset of [0, 3]) {
      const source = operand([n, d], [0, 1], { offset });
      // Added in the order of the source.
      const want = new Float32Array(rows * d);
      values.forEach((row, i) => {
        if (row < 0 || row >= rows) return;
        for (let c = 0; c < d; c++) want[row * d + c] += element(source, i, c);
      });
      for (const as of ["as here", "as on a GPU"] as const) {
        const [got] = await runCall({
          wgsl: scatterRowsWgsl,
          inputs: [index, source],
          outputs: [{ shape: [rows, d] }],
          as,
        });
        close(got, want, 0, `offset ${offset}, ${as},`);
      }
    }
  });
}

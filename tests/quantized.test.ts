/** Matrices in 8 and 4 bits: the packed form, its floats, products and memory. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad, packMatrix, QuantizedMatrix, tensor, Variable } from "@graft/ml";
import { NF4 } from "../core/ops/nf4.ts";
import { forEachDevice } from "./devices.ts";

function matrix(rows: number, columns: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i * 1.7) * (1 + i % 5));
}

forEachDevice("quantized: products are those of the rounded floats", async (device, t) => {
  for (const format of ["int8", "nf4"] as const) {
    for (const [rows, columns] of [[5, 48], [12, 192]] as [number, number][]) {
      await t.step(`${format} ${rows} x ${columns}`, async () => {
        const data = matrix(rows, columns);
        const packed = packMatrix(data, [rows, columns], format);
        assertEquals(columns % packed.block, 0);
        const w = new QuantizedMatrix(packed);
        const floats = await w.dequantize().data();
        floats.forEach((v, i) => {
          const scale = packed.scales[Math.floor(i / packed.block)];
          // Half the widest gap between two codes.
          const gap = format === "int8" ? 1 / 127 : 0.3038071990013123;
          assert(Math.abs(v - data[i]) <= scale * gap / 2 * 1.0001, `${i}: ${v}, was ${data[i]}`);
          const code = v / scale * 127;
          if (format === "int8") assert(Math.abs(code - Math.round(code)) < 1e-4);
          else assert(NF4.some((n) => Math.abs(n - v / scale) < 1e-6));
        });
        const x = new Variable(tensor(matrix(3, columns), { shape: [3, columns] }), {
          requiresGrad: true,
        });
        const plain = tensor(floats, { shape: [rows, columns] });
        const y = w.multiply(x);
        const want = x.matmul(plain.transpose());
        assertEquals(await y.data(), await want.data());
        const [dx] = grad(y.square().sum(), [x]);
        const [dwant] = grad(want.square().sum(), [x]);
        assertEquals(await dx!.data(), await dwant!.data());
        assert(w.bytes < 4 * rows * columns / (format === "int8" ? 3 : 5), `${w.bytes} bytes`);
      });
    }
  }
  void device;
});

Deno.test("quantized: bad matrices", () => {
  assertThrows(() => packMatrix(new Float32Array(12), [2, 6], "nf4"), RangeError, "multiple of 8");
  const broken = new Float32Array(8).fill(NaN);
  assertThrows(() => packMatrix(broken, [1, 8], "int8"), RangeError, "element 0 of [1, 8] is NaN");
});

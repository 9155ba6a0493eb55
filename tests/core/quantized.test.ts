/** Matrices in 8 and 4 bits: the packed form against bitsandbytes, its floats, products and memory. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { grad, init, QuantizedMatrix, tensor, Variable } from "@graft/ml";
import { forEachDevice } from "../devices.ts";
import { golden } from "../parity/golden.ts";

function matrix(rows: number, columns: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: rows * columns }, (_, i) => Math.sin(i * 1.7) * (1 + i % 5));
}

/** The codes in `words`, each from `bits` bits. */
function codesOf(words: ArrayLike<number>, bits: number): number[] {
  return Array.from(words).flatMap((word) =>
    Array.from({ length: 32 / bits }, (_, i) => (word >>> (i * bits)) & (2 ** bits - 1))
  );
}

forEachDevice("quantized: codes, scales and floats are those of bitsandbytes", async () => {
  await using file = await golden("quantized.safetensors");
  const w = await file.tensor("w");
  for (const [format, blockSize] of [["nf4", 64], ["int8", 192]] as const) {
    const packed = QuantizedMatrix.from(w, { format, blockSize });
    assertEquals(packed.block, blockSize);
    assertEquals([...await packed.scales.data()], [...await file.floats(`${format}.scales`)]);
    const codes = codesOf(await packed.words.data(), format === "nf4" ? 4 : 8);
    const want = await (await file.ints(`${format}.codes`)).data();
    const values = await file.floats(`${format}.values`);
    const floats = await packed.dequantize().data();
    floats.forEach((x, i) => {
      // A block of zeros may be any code.
      if (values[i] !== 0 || x !== 0) {
        assertEquals(codes[i], want[i] & (format === "nf4" ? 15 : 255));
      }
      // bitsandbytes multiplies in another order.
      assert(Math.abs(x - values[i]) <= 2 ** -22 * Math.abs(values[i]), `${format} ${i}: ${x}`);
    });
    // What was rounded is not rounded again.
    const words = await packed.words.data(), scales = await packed.scales.data();
    packed.assign(packed.dequantize());
    assertEquals(await packed.words.data(), words);
    assertEquals(await packed.scales.data(), scales);
  }
});

forEachDevice("quantized: products are those of the rounded floats", async (_, t) => {
  for (const format of ["int8", "nf4"] as const) {
    for (const [rows, columns, lines] of [[5, 48, 3], [12, 192, 12]]) {
      await t.step(`${format} ${rows} x ${columns}`, async () => {
        const w = QuantizedMatrix.from(tensor(matrix(rows, columns), { shape: [rows, columns] }), {
          format,
        });
        const floats = await w.dequantize().data();
        const x = new Variable(tensor(matrix(lines, columns), { shape: [lines, columns] }), {
          requiresGrad: true,
        });
        const plain = tensor(floats, { shape: [rows, columns] });
        const y = w.multiply(x.reshape(1, lines, columns));
        assertEquals(y.shape, [1, lines, rows]);
        const want = x.matmul(plain.transpose());
        close(await y.data(), await want.data());
        const [dx] = grad(y.square().sum(), [x]);
        const [dwant] = grad(want.square().sum(), [x]);
        close(await dx!.data(), await dwant!.data());
      });
    }
  }
});

Deno.test("quantized: deep products, packed in slices", async () => {
  const device = await init({ device: "cpu" });
  const [rows, columns, lines] = [2053, 2064, 10];
  for (const format of ["int8", "nf4"] as const) {
    const w = QuantizedMatrix.from(tensor(matrix(rows, columns), { shape: [rows, columns] }), {
      format,
      blockSize: 48,
    });
    const x = new Variable(tensor(matrix(lines, columns), { shape: [lines, columns] }), {
      requiresGrad: true,
    });
    const g = tensor(matrix(lines, rows), { shape: [lines, rows] });
    const plain = new Variable(w.dequantize());
    const y = w.multiply(x);
    const [dx] = grad(y, [x], { seed: g });
    close(await y.data(), await x.matmul(plain.transpose()).data());
    close(await dx!.data(), await g.matmul(plain).data());
  }
  await device.close();
});

function close(got: ArrayLike<number>, want: ArrayLike<number>): void {
  assertEquals(got.length, want.length);
  const scale = Math.max(...Array.from(want, Math.abs));
  for (let i = 0; i < got.length; i++) {
    assert(Math.abs(got[i] - want[i]) <= 1e-6 * scale, `${i}: ${got[i]}, is ${want[i]}`);
  }
}

forEachDevice("quantized: a product holds no floats of its matrix", async (device) => {
  const size = 1536;
  for (const format of ["int8", "nf4"] as const) {
    const w = QuantizedMatrix.from(tensor(matrix(size, size), { shape: [size, size] }), { format });
    const x = new Variable(tensor(matrix(16, size), { shape: [16, size] }), { requiresGrad: true });
    await device.flush();
    const scales = 4 * size * size / w.block;
    assertEquals(w.bytes, size * size / (format === "int8" ? 1 : 2) + scales);
    w.multiply(x).square().sum().backward();
    await device.flush();
    const { temporaryBytes, labels } = device.lastReport!;
    assert(
      labels.filter((label) => label.startsWith("quantized_matmul")).length === 2,
      `${labels}`,
    );
    // On the cpu a slice of W of 4 MiB is floats at a time.
    assert(temporaryBytes < 4 * size * size / 2, `${temporaryBytes} bytes`);
    w.dispose();
  }
});

Deno.test("quantized: bad matrices", async () => {
  const device = await init({ device: "cpu" });
  const of = (shape: [number, number], options = {}) => () => new QuantizedMatrix(shape, options);
  assertThrows(of([2, 6]), RangeError, "nf4 needs rows of a multiple of 8 elements, got [2, 6]");
  assertThrows(of([2, 6], { format: "int8" }), RangeError, "multiple of 4");
  assertThrows(of([2, 8], { blockSize: 4 }), RangeError, "blockSize from 8 on, got 4");
  const w = new QuantizedMatrix([2, 8]);
  assertThrows(() => w.multiply(tensor([1, 2])), RangeError, "needs [..., 8], got [2]");
  assertThrows(() => w.assign(tensor([[1, 2]])), RangeError, "needs shape [2, 8], got [1, 2]");
  assertThrows(() => w.assign(tensor([1], { dtype: "f16" }).expand([2, 8])), TypeError, "got f16");
  assertEquals(new QuantizedMatrix([2, 80], { format: "nf4" }).block, 40);
  await device.close();
});

// The matrix product on webgpu against sums in double precision: every kernel it chooses among, as
// for the device at hand and as for others.
import { apply, cast, constant, type Expr } from "../../core/expr.ts";
import { matmulWgsl } from "../../core/ops/matmul/wgsl.ts";
import type { DType } from "../../core/dtype.ts";
import type { CallKernel } from "../../core/kernel.ts";
import type { WgslProgram, WgslTarget } from "../../core/wgsl.ts";
import { assertEquals } from "@std/assert";
import {
  backend,
  close,
  element,
  gpuTest,
  kinds,
  type LabOperand,
  load,
  operand,
  runCall,
} from "./webgpu_lab.ts";

/** The product of two operands with the same batch dimensions. */
function oracle(a: LabOperand, b: LabOperand): number[] {
  const rank = a.shape.length;
  const [m, k, n] = [a.shape[rank - 2], a.shape[rank - 1], b.shape[rank - 1]];
  const batch = a.shape.slice(0, rank - 2);
  const out: number[] = [];
  const walk = (at: number[]): void => {
    if (at.length < batch.length) {
      for (let i = 0; i < batch[at.length]; i++) walk([...at, i]);
      return;
    }
    for (let i = 0; i < m; i++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let l = 0; l < k; l++) sum += element(a, ...at, i, l) * element(b, ...at, l, j);
        out.push(sum);
      }
    }
  };
  walk([]);
  return out;
}

const SHAPES: [m: number, k: number, n: number][] = [
  [5, 7, 9],
  [64, 64, 64],
  [70, 33, 130],
  [68, 36, 132],
  [1, 40, 24],
  [1, 1024, 8],
  [24, 40, 1],
  [65, 4, 50],
  [200, 64, 8],
  [8, 600, 64],
  [8, 1200, 8],
  [3, 5, 2],
  [130, 20, 24],
  [24, 20, 136],
  [70, 8, 48],
  [5, 14, 36],
  [1, 1, 1],
  [33, 0, 5],
];

for (const as of kinds) {
  for (const [m, k, n] of SHAPES) {
    gpuTest(`matmul ${m}x${k}x${n}, all transposes, ${as}`, async () => {
      for (const left of [[0, 1], [1, 0]]) {
        for (const right of [[0, 1], [1, 0]]) {
          const a = operand([m, k], left), b = operand([k, n], right);
          const [got] = await runCall({
            wgsl: matmulWgsl,
            inputs: [a, b],
            outputs: [{ shape: [m, n] }],
            as,
          });
          close(got, oracle(a, b), 1e-5, `left ${left}, right ${right}`);
        }
      }
    });
  }

  gpuTest(`matmul: batches, shared and permuted, ${as}`, async () => {
    const cases: [LabOperand, LabOperand][] = [
      [operand([3, 4, 5]), operand([3, 5, 6])],
      // Shared on the right: rows of one large product.
      [operand([3, 20, 8]), operand([3, 8, 12], [1, 2], { broadcast: [0] })],
      // Heads: [B, H, T, D] laid out as [B, T, H, D].
      [operand([2, 3, 8, 16], [0, 2, 1, 3]), operand([2, 3, 16, 8], [0, 3, 1, 2])],
      [operand([2, 3, 8, 16], [0, 2, 3], { broadcast: [1] }), operand([2, 3, 16, 40])],
      [operand([4, 1, 16], [0, 1, 2]), operand([4, 16, 20], [1, 2], { broadcast: [0] })],
      [operand([10, 13], [0, 1], { pad: 3, offset: 5 }), operand([13, 11], [1, 0], { pad: 2 })],
      [operand([16, 16], [0, 1], { pad: 4, offset: 8 }), operand([16, 16], [1, 0], { pad: 4 })],
      [operand([20, 16], [0, 1], { dtype: "f16" }), operand([16, 30], [1, 0], { dtype: "bf16" })],
    ];
    for (const [a, b] of cases) {
      const shape = [...a.shape.slice(0, -1), b.shape[b.shape.length - 1]];
      const [got] = await runCall({
        wgsl: matmulWgsl,
        inputs: [a, b],
        outputs: [{ shape }],
        as,
      });
      close(got, oracle(a, b), 1e-5, `${a.shape} · ${b.shape}`);
    }
  });

  gpuTest(`matmul: enough tiles for the largest, ${as}`, async () => {
    const a = operand([32, 130, 20]), b = operand([32, 20, 132]);
    const [got] = await runCall({
      wgsl: matmulWgsl,
      inputs: [a, b],
      outputs: [{ shape: [32, 130, 132] }],
      as,
    });
    close(got, oracle(a, b), 1e-5);
  });

  gpuTest(`matmul: an epilogue with bias and residual, ${as}`, async () => {
    const acc: Expr = { kind: "acc", type: "f32" };
    const slot: Expr = { kind: "scalar", type: "i32", slot: 0 };
    // A residual that lies as the product does, times a constant; and a turned one, times a scalar.
    const cases: [number[][], number[], Expr][] = [
      [[[64, 20, 48], [5, 7, 9], [1, 64, 12], [8, 1200, 8]], [1, 0], cast(slot, "f32")],
      [
        [[64, 20, 48], [5, 7, 9], [70, 8, 48], [3, 14, 36], [40, 20, 8]],
        [0, 1],
        constant("f32", 3),
      ],
    ];
    for (const [shapes, order, factor] of cases) {
      for (const [m, k, n] of shapes) {
        const a = operand([m, k]), b = operand([k, n], [1, 0]);
        const bias = operand([n]), residual = operand([m, n], order);
        const rest = load("f32", 3, order[0] === 0 ? [n, 1] : [1, m]);
        const sum = apply("add", apply("add", acc, load("f32", 2, [0, 1])), rest);
        const want = oracle(a, b).map((v, i) =>
          3 * (v + element(bias, i % n) + element(residual, Math.floor(i / n), i % n))
        );
        for (const dtype of ["f32", "bf16"] as const) {
          const [got] = await runCall({
            wgsl: matmulWgsl,
            inputs: [a, b],
            outputs: [{ shape: [m, n], dtype }],
            scalars: [3],
            epilogue: { body: apply("mul", sum, factor), inputs: [bias, residual] },
            as,
          });
          close(got, want, dtype === "f32" ? 1e-5 : 8e-3, `${m}x${k}x${n} ${dtype} ${order}`);
        }
      }
    }
  });
}

/** As for a software device that lets no dispatch be long in any dimension. */
function folded(call: CallKernel, target: WgslTarget): WgslProgram {
  return matmulWgsl(call, { ...target, software: true, maxWorkgroups: 6 });
}

gpuTest("matmul: more tiles in registers than a dispatch is long", async () => {
  const cases = [
    [operand([3, 60, 9]), operand([3, 9, 70])],
    [operand([70, 60]), operand([60, 30])],
    [operand([5, 2, 1200]), operand([5, 1200, 8])],
  ];
  for (const [a, b] of cases) {
    const shape = [...a.shape.slice(0, -1), b.shape.at(-1)!];
    const [got] = await runCall({ wgsl: folded, inputs: [a, b], outputs: [{ shape }] });
    close(got, oracle(a, b), 1e-5, `${a.shape} · ${b.shape}`);
  }
});

/** As for a software device. */
function inRegisters(call: CallKernel, target: WgslTarget): WgslProgram {
  return matmulWgsl(call, { ...target, software: true });
}

gpuTest("matmul: products in registers that differ in sizes share a pipeline", async () => {
  const { counters } = await backend();
  const made = async (
    m: number,
    k: number,
    n: number,
    pad = 0,
    dtype: DType = "f32",
  ): Promise<number> => {
    const before = counters.pipelines;
    const a = operand([m, k], [0, 1], { pad, dtype }), b = operand([k, n], [1, 0], { offset: pad });
    const outputs = [{ shape: [m, n] }];
    const [got] = await runCall({ wgsl: inRegisters, inputs: [a, b], outputs });
    close(got, oracle(a, b), 1e-5, `${m}x${k}x${n}`);
    return counters.pipelines - before;
  };
  await made(72, 44, 320);
  assertEquals(await made(128, 44, 192), 0, "other rows and columns");
  assertEquals(await made(72, 60, 256, 4), 0, "other strides and an offset");
  // In chunks of K: the pass that adds them is one more, the first time.
  await made(16, 1028, 32);
  assertEquals(await made(16, 516, 64), 0, "other chunks");
  assertEquals(await made(72, 44, 320, 0, "f16"), 1, "another dtype");
});

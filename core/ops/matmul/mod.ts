import type { CallKernel, Operand } from "../../kernel.ts";
import { kernel, type KernelOp, recordKernel } from "../../op.ts";
import { broadcast, type Shape, show } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import { matmulWasm } from "./wasm.ts";
import { matmulWgsl } from "./wgsl.ts";

/** The op: [..., M, K] · [..., K, N], batch dimensions the same, or none on the right. */
export const matmulOp: KernelOp = kernel({
  code: {
    name: "matmul",
    accepts: (_index: number, { shape, strides }: Operand) => {
      const r = shape.length;
      // Rows or columns lie together; a transpose is taken inside the product.
      return strides[r - 1] === 1 || shape[r - 1] === 1 || strides[r - 2] === 1 ||
        shape[r - 2] === 1;
    },
    epilogue: true,
    wgsl: (call: CallKernel, target) => matmulWgsl(call, target),
    wasm: (call: CallKernel, target) => matmulWasm(call, target),
  },
  gradient: ({ g, inputs: [a, b], needs }) => [
    needs[0] ? product(g, b.transpose()) : null,
    needs[1] ? rightGradient(a, b, g) : null,
  ],
  samples: [
    {
      inputs: [{ shape: [5, 7] }, { shape: [7, 9] }],
      call: (a, b) => a.matmul(b),
      reference: bySum,
    },
    {
      name: "large enough to be blocked",
      inputs: [{ shape: [70, 33] }, { shape: [33, 130] }],
      call: (a, b) => a.matmul(b),
      reference: bySum,
      differentiable: false,
    },
    {
      name: "transposed",
      inputs: [{ shape: [7, 12] }, { shape: [20, 7] }],
      call: (a, b) => a.transpose().matmul(b.transpose()),
      reference: (a, b) => bySum(a.transpose(), b.transpose()),
    },
    {
      name: "batched, one side shared",
      inputs: [{ shape: [3, 4, 5] }, { shape: [5, 6] }],
      call: (a, b) => a.matmul(b),
      reference: bySum,
    },
    {
      name: "batched, both broadcast",
      inputs: [{ shape: [2, 1, 4, 5] }, { shape: [3, 5, 6] }],
      call: (a, b) => a.matmul(b),
      reference: bySum,
    },
    {
      name: "one row",
      inputs: [{ shape: [1, 40] }, { shape: [24, 40] }],
      call: (a, b) => a.matmul(b.transpose()),
      reference: (a, b) => bySum(a, b.transpose()),
    },
    {
      name: "low rank",
      inputs: [{ shape: [65, 4] }, { shape: [4, 50] }],
      call: (a, b) => a.matmul(b),
      reference: bySum,
    },
    {
      name: "vectors",
      inputs: [{ shape: [6] }, { shape: [6] }],
      call: (a, b) => a.matmul(b),
      reference: (a, b) => a.mul(b).sum(),
    },
  ],
});

/**
 * Matrix product of the last two dimensions: [..., M, K] · [..., K, N] is [..., M, N]. Leading
 * dimensions broadcast. A vector counts as a row (left) or a column (right), and loses that dimension.
 *
 * Throws where K differs, leading dimensions do not broadcast, or dtypes differ.
 */
export function matmul(a: Tensor, b: Tensor): Tensor {
  if (a.rank === 0 || b.rank === 0) {
    throw new RangeError(`matmul: needs matrices, got ${show(a.shape)} and ${show(b.shape)}`);
  }
  if (a.rank === 1) return matmul(a.unsqueeze(0), b).squeeze(b.rank === 1 ? 0 : -2);
  if (b.rank === 1) return matmul(a, b.unsqueeze(1)).squeeze(-1);
  const k = a.shape[a.rank - 1];
  if (k !== b.shape[b.rank - 2]) {
    throw new RangeError(
      `matmul: needs as many columns on the left as rows on the right, got ${show(a.shape)} and ${
        show(b.shape)
      }`,
    );
  }
  if (a.dtype !== b.dtype || a.dtype !== "f32") {
    throw new TypeError(
      `matmul: needs both of dtype f32, got ${a.dtype} and ${b.dtype}; convert with .to("f32")`,
    );
  }
  const batch = broadcast("matmul", a.shape.slice(0, -2), b.shape.slice(0, -2));
  // A matrix on the right is shared by all rows on the left: the kernels make one large product of it.
  if (b.rank === 2) return product(a, b);
  const whole = (t: Tensor): Tensor => t.expand([...batch, ...t.shape.slice(-2)]);
  return product(whole(a), whole(b));
}

/** aᵀ g, or (gᵀ a)ᵀ where b is itself a transpose: the gradient then lies as what was transposed. */
function rightGradient(a: Tensor, b: Tensor, g: Tensor): Tensor {
  if (b.rank < a.rank) {
    const rows = (t: Tensor): Tensor => t.reshape(-1, t.shape[t.rank - 1]); // [..., K] -> [M, K]
    return rightGradient(rows(a), b, rows(g));
  }
  const order = b.node.attrs.order as readonly number[] | undefined;
  const turned = b.node.op.name === "permute" && order![b.rank - 1] === b.rank - 2;
  return turned ? product(g.transpose(), a).transpose() : product(a.transpose(), g);
}

/** The product of two tensors with the same batch dimensions, or with a matrix on the right. */
function product(a: Tensor, b: Tensor): Tensor {
  const shape: Shape = [...a.shape.slice(0, -1), b.shape[b.rank - 1]];
  return recordKernel(matmulOp, [a, b], [{ shape, dtype: a.dtype }], {})[0];
}

/** The composed truth: Σₖ a[.., m, k, 1] · b[.., 1, k, n]. */
function bySum(a: Tensor, b: Tensor): Tensor {
  return a.unsqueeze(-1).mul(b.unsqueeze(-3)).sum(-2);
}

import { customFunction } from "../../autograd.ts";
import { recordsGradients } from "../../graph.ts";
import type { CallKernel, Operand } from "../../kernel.ts";
import { kernel, type KernelOp, recordKernel } from "../../op.ts";
import { rowMajor } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import { concatenate } from "../concatenate.ts";
import { normGradientWasm } from "./wasm.ts";

/** What a row is normalised by, [..., 1]: (x - mean) · scale. Without a mean, x · scale. */
export interface Moments {
  readonly mean: Tensor | null;
  readonly scale: Tensor;
}

/** Which gradients are wanted. */
interface Wanted {
  readonly input: boolean;
  readonly weight: boolean;
  readonly bias: boolean;
}

/** The input's gradient [..., D]; the weight's and the bias's, whose rows may still be summed. */
type Gradients = readonly [input: Tensor | null, weight: Tensor | null, bias: Tensor | null];

/**
 * The gradient's op, on the cpu alone: x [..., D], its gradient [..., D], scale [..., 1], (mean [..., 1]),
 * (weight [D]) → the gradients of x [..., D], (weight [D]), (bias [D]).
 */
export const normGradientOp: KernelOp = kernel({
  code: {
    name: "normGradient",
    // Rows one after the other.
    accepts: (_index: number, { shape, strides }: Operand) => {
      const own = rowMajor(shape);
      return strides.every((stride, d) => stride === own[d] || shape[d] === 1);
    },
    epilogue: false,
    wgsl: () => {
      throw new Error("internal: WebGPU composes it of other ops");
    },
    wasm: (call: CallKernel) => normGradientWasm(call),
  },
  gradient: null,
  samples: [
    sample("centred", [5, 7], true, { input: true, weight: true, bias: true }),
    sample("long rows, many of them", [69, 301], true, { input: true, weight: true, bias: false }),
    sample("not centred, one row", [1, 12], false, { input: true, weight: true, bias: false }),
    sample("frozen", [2, 3, 8], true, { input: true, weight: false, bias: false }),
  ],
});

function sample(
  name: string,
  shape: readonly number[],
  centred: boolean,
  wanted: Wanted,
): KernelOp["samples"][number] {
  const by = (gradients: typeof composed) => (x: Tensor, g: Tensor, w: Tensor): Tensor => {
    const mean = centred ? x.mean(-1, true) : null;
    const scale = (mean ? x.sub(mean) : x).square().mean(-1, true).add(1e-3).rsqrt();
    const axes = shape.map((_, d) => d).slice(0, -1);
    const [input, ...affine] = gradients(x, g, w, { mean, scale }, wanted);
    const sums = affine.filter((t) => t !== null).map((t) => t.rank > 1 ? t.sum(axes) : t);
    return concatenate([input!.flatten(), ...sums], 0);
  };
  const d = shape[shape.length - 1];
  return {
    name,
    inputs: [{ shape }, { shape }, { shape: [d] }],
    call: by(gradientsOf),
    reference: by(composed),
  };
}

/** Rows of x, normalised by `momentsOf(x)`, times `weight` plus `bias`, [D] or null. */
export function normalise(
  x: Tensor,
  weight: Tensor | null,
  bias: Tensor | null,
  momentsOf: (x: Tensor) => Moments,
): Tensor {
  let found: Moments;
  const inputs = [x, weight, bias].filter((t) => t !== null);
  const parts = (affine: readonly Tensor[]) => ({
    w: weight && affine[0],
    b: bias && affine[affine.length - 1],
  });
  return customFunction(inputs, ([x, ...affine]) => {
    const { w, b } = parts(affine);
    found = momentsOf(x);
    const y = standard(x, found);
    const scaled = w ? y.mul(w) : y;
    return b ? scaled.add(b) : scaled;
  }, ({ g, inputs: [x, ...affine] }) => {
    const { w, b } = parts(affine);
    const [input, weightToo, biasToo] = [x, w, b].map((t) => t?.node.needsGrad ?? false);
    const wanted = { input, weight: weightToo, bias: biasToo };
    // Forward's moments are at hand, but a gradient to be differentiated has to know their recipe.
    const gradients = recordsGradients()
      ? composed(x, g, w, momentsOf(x), wanted)
      : gradientsOf(x, g, w, found, wanted);
    return gradients.filter((_, i) => [x, w, b][i] !== null);
  });
}

function standard(x: Tensor, { mean, scale }: Moments): Tensor {
  return (mean ? x.sub(mean) : x).mul(scale);
}

/** By the kernel, where there is one. */
function gradientsOf(
  x: Tensor,
  g: Tensor,
  weight: Tensor | null,
  moments: Moments,
  wanted: Wanted,
): Gradients {
  if (x.device.name !== "cpu" || x.dtype !== "f32" || !wanted.input) {
    return composed(x, g, weight, moments, wanted);
  }
  const { mean, scale } = moments;
  const inputs = [x, g, scale];
  if (mean) inputs.push(mean);
  if (weight) inputs.push(weight);
  const affine = [wanted.weight, wanted.bias].filter((is) => is).map(() => x.shape.slice(-1));
  const outputs = [x.shape, ...affine].map((shape) => ({ shape, dtype: x.dtype }));
  const [input, ...rest] = recordKernel(normGradientOp, inputs, outputs, {
    centred: mean !== null,
    weighted: weight !== null,
    weight: wanted.weight,
    bias: wanted.bias,
  });
  return [
    input,
    wanted.weight ? rest[0] : null,
    wanted.bias ? rest[rest.length - 1] : null,
  ];
}

function composed(
  x: Tensor,
  g: Tensor,
  weight: Tensor | null,
  moments: Moments,
  wanted: Wanted,
): Gradients {
  // What is recorded for each reader anew is computed inside of it, and not stored: [..., D].
  const y = () => standard(x, moments);
  const h = () => weight ? g.mul(weight) : g;
  const mean = (t: Tensor) => t.sum(-1, true).mul(1 / x.shape[x.rank - 1]); // [..., 1]
  const input = () => {
    // scale · (h - mean(h) - y · mean(h · y)) with h the gradient of the normalised y
    const slope = mean(h().mul(y()));
    const levelled = moments.mean ? h().sub(mean(h())) : h();
    return levelled.sub(y().mul(slope)).mul(moments.scale);
  };
  return [
    wanted.input ? input() : null,
    wanted.weight ? g.mul(y()) : null,
    wanted.bias ? g : null,
  ];
}

import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { axisOf, show } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { permuteView } from "../view.ts";

/** The op. */
export const permuteOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "permute",
  view: (view, attrs) => permuteView(view, attrs.order as number[]),
  pads: false,
  gradient: ({ g, attrs }) => {
    const order = attrs.order as number[];
    return [permute(g, order.map((_, d) => order.indexOf(d)))];
  },
  samples: [{ inputs: [{ shape: [2, 3, 4] }], call: (x) => x.permute(2, 0, 1) }],
});

/** Dimension d of the result is dimension `order[d]` of `x`. Throws where `order` is no permutation. */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  const dims = order.map((d) => axisOf("permute", d, x.shape));
  if (dims.length !== x.rank || new Set(dims).size !== dims.length) {
    throw new RangeError(
      `permute: needs each dimension of ${show(x.shape)} once, got order [${order.join(", ")}]`,
    );
  }
  if (dims.every((d, i) => d === i)) return x;
  const { node } = x;
  if (node.op === permuteOp && node.value === null) {
    // Two in a row are one, or none.
    const inner = node.attrs.order as readonly number[];
    return permute(new Tensor(node.inputs[0]), dims.map((d) => inner[d]));
  }
  const shape = dims.map((d) => x.shape[d]);
  return new Tensor(record(permuteOp, [x.node], { shape, dtype: x.dtype }, { order: dims }));
}

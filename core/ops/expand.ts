import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { broadcast, sameShape, type Shape, show } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { expandView } from "../view.ts";

/** The op. Its gradient is summed to the input's shape by the engine, as for every broadcast. */
export const expandOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "expand",
  view: (view, _attrs, shape) => expandView(view, shape),
  pads: false,
  gradient: ({ g }) => [g],
  samples: [{ inputs: [{ shape: [3, 1] }], call: (x) => x.expand(2, 3, 4) }],
});

/** Stretches dimensions of size 1, and adds leading ones, without copying. -1 keeps a size. */
export function expand(x: Tensor, shape: Shape): Tensor {
  const lead = shape.length - x.rank;
  const target = shape.map((n, d) => n === -1 && d >= lead ? x.shape[d - lead] : n);
  if (lead < 0 || !sameShape(broadcast("expand", x.shape, target), target)) {
    throw new RangeError(`expand: cannot stretch ${show(x.shape)} to ${show(shape)}`);
  }
  if (sameShape(target, x.shape)) return x;
  return new Tensor(record(expandOp, [x.node], { shape: target, dtype: x.dtype }));
}

import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { axesOf } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { flipView } from "../view.ts";

/** The op. */
export const flipOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "flip",
  view: (view, attrs) => (attrs.axes as number[]).reduce(flipView, view),
  pads: false,
  gradient: ({ g, attrs }) => [flip(g, attrs.axes as number[])],
  samples: [{ inputs: [{ shape: [3, 4] }], call: (x) => x.flip([0, 1]) }],
});

/** Back to front along `axes`. */
export function flip(x: Tensor, axes: number | readonly number[]): Tensor {
  const dims = axesOf("flip", axes, x.shape);
  return new Tensor(record(flipOp, [x.node], { shape: x.shape, dtype: x.dtype }, { axes: dims }));
}

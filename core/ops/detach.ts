import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { Tensor } from "../tensor.ts";

/** The op. */
export const detachOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "detach",
  view: (view) => view,
  pads: false,
  gradient: null,
  samples: [],
});

/** The same value, through which no gradient flows. */
export function detach(x: Tensor): Tensor {
  if (!x.node.needsGrad) return new Tensor(x.node);
  return new Tensor(record(detachOp, [x.node], { shape: x.shape, dtype: x.dtype }));
}

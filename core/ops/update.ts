import { type Node, record } from "../graph.ts";
import { defineOp, type UpdateOp } from "../op.ts";

const op: UpdateOp = defineOp<UpdateOp>({
  kind: "update",
  name: "update",
  gradient: null,
  samples: [],
});

/** Records that `value` is written over `base` from `start` on along `axis`; see `Variable.update`. */
export function recordUpdate(base: Node, value: Node, start: Node, axis: number): Node {
  return record(op, [base, value, start], { shape: base.shape, dtype: base.dtype }, { axis });
}

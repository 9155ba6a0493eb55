import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { sameShape, type Shape, show, sizeOf } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { reshapeView } from "../view.ts";

const op: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "reshape",
  view: (view, _attrs, shape) => reshapeView(view, shape),
  pads: false,
  gradient: ({ g, inputs: [x] }) => [reshape(g, x.shape)],
  samples: [
    {
      inputs: [{ shape: [2, 6] }],
      call: (x) => x.reshape(3, 4),
    },
    {
      name: "of a transpose",
      inputs: [{ shape: [3, 4] }],
      call: (x) => x.transpose().reshape(2, 6),
    },
  ],
});

/**
 * The same elements, in row-major order, in another shape. One size may be -1: it is what is left.
 *
 * Throws where the counts differ.
 */
export function reshape(x: Tensor, shape: Shape): Tensor {
  let target = shape;
  const open = shape.indexOf(-1);
  if (open >= 0) {
    const rest = sizeOf(shape.toSpliced(open, 1));
    target = shape.with(open, rest === 0 ? 0 : x.size / rest);
  }
  if (!target.every((n) => Number.isInteger(n) && n >= 0) || sizeOf(target) !== x.size) {
    throw new RangeError(
      `reshape: ${show(x.shape)} has ${x.size} elements, no shape ${show(shape)}`,
    );
  }
  if (sameShape(target, x.shape)) return x;
  const { node } = x;
  // Two in a row are one, or none.
  if (node.op === op && node.value === null) return reshape(new Tensor(node.inputs[0]), target);
  return new Tensor(record(op, [node], { shape: target, dtype: x.dtype }));
}

/** The op itself. */
export const reshapeOp: MovementOp = op;

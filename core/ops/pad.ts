import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { axisOf } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { padView } from "../view.ts";
import { iota } from "./iota.ts";
import { slice } from "./slice.ts";
import { where } from "./where.ts";

/** The op, for zeros. */
export const padOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "pad",
  view: (view, { axis, before, after }) =>
    padView(view, axis as number, before as number, after as number),
  pads: true,
  gradient: ({ g, inputs: [x], attrs }) => {
    const [axis, before] = [attrs.axis as number, attrs.before as number];
    return [slice(g, axis, before, before + x.shape[axis])];
  },
  samples: [
    { inputs: [{ shape: [2, 3] }], call: (x) => x.pad(1, 2, 1) },
    { name: "of a sum", inputs: [{ shape: [2, 3] }], call: (x) => x.add(1).pad(0, 1, 0) },
    { name: "with ones", inputs: [{ shape: [2, 3] }], call: (x) => x.pad(1, 1, 1, 1) },
  ],
});

/** `before` and `after` elements of `value` around `axis`. Throws on a negative count. */
export function pad(x: Tensor, axis: number, before: number, after: number, value = 0): Tensor {
  const dim = axisOf("pad", axis, x.shape);
  if (!(Number.isInteger(before) && Number.isInteger(after) && before >= 0 && after >= 0)) {
    throw new RangeError(`pad: needs whole numbers from 0 on, got ${before} and ${after}`);
  }
  if (before + after === 0) return x;
  const n = x.shape[dim];
  const shape = x.shape.with(dim, n + before + after);
  const padded = new Tensor(
    record(padOp, [x.node], { shape, dtype: x.dtype }, { axis: dim, before, after }),
  );
  if (value === 0) return padded;
  const index = iota(shape, dim, "i32", x.device);
  return where(index.ge(before).and(index.lt(before + n)), padded, value);
}

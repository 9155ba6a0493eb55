import { record } from "../graph.ts";
import { defineOp, type MovementOp } from "../op.ts";
import { axisOf, show } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { sliceView } from "../view.ts";
import { pad } from "./pad.ts";
import { reshape } from "./reshape.ts";

/** The op. */
export const sliceOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "slice",
  view: (view, { axis, start, end, step }) =>
    sliceView(view, axis as number, start as number, end as number, step as number),
  pads: false,
  gradient: ({ g, inputs: [x], attrs }) => {
    const [axis, start, step] = [attrs.axis as number, attrs.start as number, attrs.step as number];
    const n = g.shape[axis];
    let spread = g;
    if (step > 1) {
      // Zeros between the elements: a dimension of size `step` behind, padded and folded in.
      const wide = [...g.shape.slice(0, axis + 1), 1, ...g.shape.slice(axis + 1)];
      spread = pad(reshape(g, wide), axis + 1, 0, step - 1);
      spread = reshape(spread, g.shape.with(axis, n * step));
      const over = start + n * step - x.shape[axis];
      if (over > 0) spread = slice(spread, axis, 0, n * step - over);
    }
    return [pad(spread, axis, start, x.shape[axis] - start - spread.shape[axis])];
  },
  samples: [
    { inputs: [{ shape: [4, 5] }], call: (x) => x.slice(1, 1, 4) },
    { name: "with a step", inputs: [{ shape: [7, 2] }], call: (x) => x.slice(0, 1, 7, 2) },
    { name: "from the end", inputs: [{ shape: [2, 5] }], call: (x) => x.slice(-1, -3) },
  ],
});

/**
 * Elements from `start` below `end` along `axis`, every `step`-th. Negative bounds count from the end.
 *
 * Throws a `RangeError` where the range leaves the tensor or is reversed.
 */
export function slice(x: Tensor, axis: number, start: number, end?: number, step = 1): Tensor {
  const dim = axisOf("slice", axis, x.shape);
  const n = x.shape[dim];
  const from = start < 0 ? start + n : start;
  const to = end === undefined ? n : end < 0 ? end + n : end;
  const whole = [from, to, step].every(Number.isInteger);
  if (!whole || from < 0 || to > n || from > to || step < 1) {
    throw new RangeError(
      `slice: range ${start} to ${end ?? n} by ${step} does not lie in axis ${dim} of shape ${
        show(x.shape)
      }`,
    );
  }
  if (from === 0 && to === n && step === 1) return x;
  const shape = x.shape.with(dim, Math.ceil((to - from) / step));
  return new Tensor(
    record(sliceOp, [x.node], { shape, dtype: x.dtype }, { axis: dim, start: from, end: to, step }),
  );
}

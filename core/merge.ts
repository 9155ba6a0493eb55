/**
 * Merging: pointwise kernels over one shape that read the same elements, such as the moments and the
 * parameter in a step of an optimizer, become one kernel with several outputs. So what they share is
 * read once, and what one of them computes the next has at hand.
 *
 * @module
 */

import type { Storage } from "./body.ts";
import { bytesOf, registerOf } from "./dtype.ts";
import { accessesOf, type Expr, operationsOf, rewrite } from "./expr.ts";
import { bodiesOf, type LoopKernel, readsOwn, withOutputs } from "./kernel.ts";
import { sameShape } from "./shape.ts";
import type { LoweredStep } from "./steps.ts";

/** Operations up to which a kernel grows; beyond, WGSL no longer computes it in vectors. */
const MOST_OPERATIONS = 48;

type PointwiseStep = LoweredStep & { readonly kernel: LoopKernel };

/** An update writes into a value that others hold, at a place of its own: it is left as it is. */
function isPointwise(step: LoweredStep): step is PointwiseStep {
  const { kernel } = step;
  return kernel.kind === "loop" && kernel.reduced === 0 && kernel.write.slot === undefined;
}

/**
 * The steps with what can be merged merged. The later of two kernels moves up to the earlier, across
 * others only where its output is one of `lasting`, since it then lives on in either case, and never
 * across the beginning or end of a host step.
 */
export function mergeSteps(
  steps: readonly LoweredStep[],
  lasting: ReadonlySet<Storage>,
  maxBindings: number,
): LoweredStep[] {
  const merged: LoweredStep[] = [];
  // Places in `merged`: where a storage was written last, read last, and met by a pointwise kernel.
  const written = new Map<Storage, number>();
  const read = new Map<Storage, number>();
  const met = new Map<Storage, number>();
  let mark = -1;
  const moves = (step: PointwiseStep, place: number): boolean => {
    if (place === merged.length - 1) return true;
    // An old value that others read in between could not be written over any more.
    return lasting.has(step.outputs[0]) &&
      step.inputs.every((s) => s.kind !== "variable" || (read.get(s) ?? -1) <= place);
  };
  const findPlace = (step: PointwiseStep): number | null => {
    const after = Math.max(mark, ...step.inputs.map((s) => written.get(s) ?? -1));
    const places = new Set(step.inputs.map((s) => met.get(s) ?? -1));
    for (const place of [...places].sort((a, b) => b - a)) {
      if (place < Math.max(after, 0) || !moves(step, place)) continue;
      const joined = join(merged[place] as PointwiseStep, step, maxBindings);
      if (!joined) continue;
      merged[place] = joined;
      return place;
    }
    return null;
  };
  for (const step of steps) {
    const pointwise = isPointwise(step);
    let place = pointwise ? findPlace(step) : null;
    if (place === null) {
      place = merged.length;
      merged.push(step);
    }
    if (step.kernel.kind === "begin" || step.kernel.kind === "end") mark = place;
    for (const s of step.inputs) read.set(s, place);
    for (const s of step.outputs) written.set(s, place);
    if (pointwise) { for (const s of [...step.inputs, ...step.outputs]) met.set(s, place); }
  }
  return merged;
}

/** What a step reads only at the element it writes, and what it reads elsewhere too. */
function readsOf({ kernel, inputs }: PointwiseStep): Record<"own" | "elsewhere", Set<Storage>> {
  const own = new Set<Storage>(), elsewhere = new Set<Storage>();
  for (const e of accessesOf(...bodiesOf(kernel))) {
    const here = e.kind === "load" && readsOwn(kernel, e);
    (here ? own : elsewhere).add(inputs[e.input]);
  }
  return { own, elsewhere };
}

/** `first`, with what `second` computes as further outputs; null where they cannot be one kernel. */
function join(
  first: PointwiseStep,
  second: PointwiseStep,
  maxBindings: number,
): PointwiseStep | null {
  const [a, b] = [first.kernel, second.kernel];
  if (a.output !== b.output || !sameShape(a.shape, b.shape)) return null;
  const [before, after] = [readsOf(first), readsOf(second)];
  const made = new Set(first.outputs);
  const shares = [...after.own].some((s) => before.own.has(s) || made.has(s));
  // What both touch they touch at the same element, or an output could not take its place.
  const apart = [...after.elsewhere].every((s) => !before.own.has(s) && !made.has(s)) &&
    [...before.elsewhere].every((s) => !after.own.has(s));
  // A value that is rounded where it is stored is not the value at hand.
  const rounded = bytesOf(a.output) === 2 && [...after.own].some((s) => made.has(s));
  if (!shares || !apart || rounded) return null;

  const inputs = [...new Set([...first.inputs, ...second.inputs])].filter((s) => !made.has(s));
  const outputs = [...first.outputs, ...second.outputs];
  if (inputs.length + outputs.length > maxBindings) return null;
  const scalars = [...new Set([...first.scalars, ...second.scalars])];
  // What several bodies read is one node, which is loaded once.
  const known = new Map<string, Expr>();
  const shared = <E extends Expr>(e: E): E => {
    const key = JSON.stringify(e);
    if (!known.has(key)) known.set(key, e);
    return known.get(key) as E;
  };
  const bodies: Expr[] = [];
  for (const step of [first, second]) {
    bodies.push(...rewrite(bodiesOf(step.kernel), (e) => {
      if (e.kind === "scalar") return shared({ ...e, slot: scalars.indexOf(step.scalars[e.slot]) });
      if (e.kind !== "load" && e.kind !== "fetch") return e;
      const storage = step.inputs[e.input];
      if (made.has(storage)) return bodies[outputs.indexOf(storage)];
      const input = inputs.indexOf(storage);
      return e.kind === "load" ? shared({ ...e, input }) : { ...e, input };
    }));
  }
  if (operationsOf(...bodies) > MOST_OPERATIONS) return null;
  const dtypeOf = new Map(
    [first, second].flatMap(({ kernel, inputs }) =>
      inputs.map((s, i) => [s, kernel.inputs[i]] as const)
    ),
  );
  const kernel: LoopKernel = {
    ...a,
    label: `${a.label} & ${b.label}`,
    inputs: inputs.map((s) => dtypeOf.get(s)!),
    scalars: scalars.map((s) => registerOf(s.dtype)),
  };
  return {
    ...first,
    inputs,
    outputs,
    scalars,
    kernel: withOutputs(kernel, bodies.map((body) => ({ body, inPlace: null }))),
  };
}

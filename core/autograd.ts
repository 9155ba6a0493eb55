/**
 * Automatic differentiation over the recorded nodes.
 *
 * @module
 */

import {
  type CustomGradient,
  hoisted,
  inOrder,
  internally,
  newMark,
  Node,
  record,
  recordsGradients,
} from "./graph.ts";
import { withGradients, withoutGradients } from "./graph.ts";
import { defaultGenerator } from "./generator.ts";
import { defineOp, type GradientContext, type MovementOp, scalar } from "./op.ts";
import { expand } from "./ops/expand.ts";
import { sameShape, type Shape, show } from "./shape.ts";
import { NO_ATTRS } from "./signature.ts";
import { Tensor } from "./tensor.ts";
import type { Variable } from "./variable.ts";

/** Runs `fn` without recording what a gradient needs. */
export function noGrad<T>(fn: () => T): T {
  return withoutGradients(fn);
}

const attachOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "attach",
  view: (view) => view,
  pads: false,
  gradient: () => {
    throw new Error("internal: an attached tensor is a leaf");
  },
  samples: [],
});

const customOp: MovementOp = defineOp<MovementOp>({
  kind: "movement",
  name: "custom",
  view: (view) => view,
  pads: false,
  gradient: () => {
    throw new Error("internal: a custom function carries its own gradient");
  },
  samples: [],
});

/** The same value as a leaf that wants a gradient: what {@linkcode grad} differentiates by. */
export function attach(x: Tensor): Tensor {
  return new Tensor(
    new Node(
      attachOp,
      [x.node],
      { shape: x.shape, dtype: x.dtype },
      NO_ATTRS,
      x.device,
      true,
      null,
      null,
    ),
  );
}

/** What a custom function's gradient is given. */
export type CustomContext = Omit<GradientContext, "attrs" | "needs">;

/**
 * A function with a gradient of your own. `forward` runs without recording gradients; `backward` gets
 * the outputs' gradients and gives those of `inputs`, null where there is none.
 *
 * @example
 * ```ts
 * import { customFunction, init, tensor, Variable } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const x = new Variable(tensor([1, 2]), { requiresGrad: true });
 * // Rounds down, but lets gradients through: a straight-through estimator.
 * const y = customFunction([x], ([x]) => x.floor(), ({ g }) => [g]);
 * y.sum().backward();
 * console.log(await x.grad!.data()); // Float32Array [1, 1]
 * ```
 */
export function customFunction(
  inputs: readonly Tensor[],
  forward: (inputs: readonly Tensor[]) => Tensor,
  backward: (context: CustomContext) => readonly (Tensor | null)[],
): Tensor {
  if (!recordsGradients() || !inputs.some((i) => i.node.needsGrad)) return forward(inputs);
  const out = withoutGradients(() => forward(inputs));
  return join(inputs, [out], false, (gs, outs) => {
    return backward({ g: gs[0]!, gs, inputs, out: outs[0], outs });
  })[0];
}

/** Wraps `outs` so that their gradients go through `backward`. */
function join(
  inputs: readonly Tensor[],
  outs: readonly Tensor[],
  always: boolean,
  backward: (
    gs: readonly (Tensor | null)[],
    wrapped: readonly Tensor[],
    engine: Engine,
  ) => readonly (Tensor | null)[],
): Tensor[] {
  const sources = inputs.map((i) => i.node);
  const wrapped: Tensor[] = [];
  const nodes: Node[] = [];
  outs.forEach((out, index) => {
    const behind = index === 0 ? sources : [nodes[0]];
    const shape = { shape: out.shape, dtype: out.dtype };
    const node = always
      ? new Node(customOp, [out.node, ...behind], shape, NO_ATTRS, out.device, true, null, null)
      : record(customOp, [out.node, ...behind], shape);
    nodes.push(node);
    wrapped.push(new Tensor(node));
  });
  const custom = (index: number): CustomGradient => ({
    anchor: nodes[0],
    index,
    outputs: nodes,
    backward: (gs, engine) => backward(gs, wrapped, engine as Engine),
  });
  nodes.forEach((node, index) => node.custom = custom(index));
  return wrapped;
}

/** Sums the dimensions along which `shape` was stretched to the gradient's. */
function sumTo(g: Tensor, shape: Shape): Tensor {
  if (sameShape(g.shape, shape)) return g;
  const lead = g.rank - shape.length;
  const axes: number[] = [];
  for (let d = 0; d < g.rank; d++) {
    if (d < lead || (shape[d - lead] === 1 && g.shape[d] !== 1)) axes.push(d);
  }
  return g.sum(axes).reshape(shape);
}

/** One backward pass. */
class Engine {
  readonly #grads = new Map<Node, (Tensor | null)[]>();
  /** Gradients of leaves: variables and attached tensors. */
  readonly leaves: Map<Node, Tensor> = new Map();

  /** Adds the gradient of one output of `node`. */
  seed(node: Node, g: Tensor): void {
    let target = node;
    let index = 0;
    let count = 1;
    if (node.op.kind === "pick") {
      target = node.inputs[0];
      index = node.attrs.index as number;
      count = target.outputs!.length;
    } else if (node.custom) {
      target = node.custom.anchor;
      index = node.custom.index;
      count = node.custom.outputs.length;
    }
    let gs = this.#grads.get(target);
    if (!gs) this.#grads.set(target, gs = new Array<Tensor | null>(count).fill(null));
    const before = gs[index];
    gs[index] = before ? before.add(g) : g;
  }

  /** Walks from `roots`, whose gradients are seeded, to the leaves, in reverse recording order. */
  run(roots: readonly Node[]): void {
    const mark = newMark();
    const reached: Node[] = [];
    const stack: Node[] = [];
    const reach = (node: Node): void => {
      if (!node.needsGrad || node.mark === mark) return;
      node.mark = mark;
      reached.push(node);
      stack.push(node);
    };
    roots.forEach(reach);
    while (stack.length > 0) {
      const node = stack.pop()!;
      if (isLeaf(node)) continue;
      // An op's own inputs; a custom function's come after the value it wraps.
      const from = node.custom ? 1 : 0;
      for (let i = from; i < node.inputs.length; i++) reach(node.inputs[i]);
    }
    const order = inOrder(reached, (node) => !isLeaf(node));
    for (let n = order.length - 1; n >= 0; n--) if (order[n] !== null) this.#step(order[n]!);
    const leaves = reached.filter(isLeaf).sort((a, b) => b.id - a.id);
    for (const leaf of leaves) this.#step(leaf);
  }

  #step(node: Node): void {
    const gs = this.#grads.get(node);
    if (!gs) return;
    this.#grads.delete(node);
    if (isLeaf(node)) {
      const before = this.leaves.get(node);
      this.leaves.set(node, before ? before.add(gs[0]!) : gs[0]!);
      return;
    }
    const custom = node.custom;
    const inputs = custom ? node.inputs.slice(1) : node.inputs;
    const grads = custom ? custom.backward(gs, this) : this.#byOp(node, gs);
    inputs.forEach((input, i) => {
      const g = grads[i];
      if (!g || !input.needsGrad) return;
      if (g.dtype !== input.dtype) {
        throw new TypeError(
          `backward: the gradient of ${node.op.name} for input ${i} has dtype ${g.dtype}, not ${input.dtype}`,
        );
      }
      this.seed(input, sumTo(g, input.shape));
    });
  }

  #byOp(node: Node, gs: readonly (Tensor | null)[]): readonly (Tensor | null)[] {
    const outs = [new Tensor(node)];
    return node.op.gradient!({
      g: gs[0] ?? gs.find((g) => g !== null)!,
      gs,
      inputs: node.inputs.map((n) => new Tensor(n)),
      out: outs[0],
      outs: node.outputs ? node.picks! : outs,
      attrs: node.attrs,
      needs: node.inputs.map((n) => n.needsGrad),
    });
  }
}

/** Where backward stops: a variable, or a tensor attached. */
function isLeaf(node: Node): boolean {
  return node.op.kind === "leaf" || node.op === attachOp;
}

let warned = false;

function rootGradient(output: Tensor, seed: Tensor | undefined): Tensor {
  if (!output.node.needsGrad) {
    throw new Error(
      "backward: nothing it is computed from requires a gradient; is every parameter frozen?",
    );
  }
  if (seed) {
    if (!sameShape(seed.shape, output.shape)) {
      throw new RangeError(
        `backward: needs a seed of shape ${show(output.shape)}, got ${show(seed.shape)}`,
      );
    }
    return seed;
  }
  if (output.size !== 1) {
    throw new RangeError(
      `backward: needs a scalar, or a seed of shape ${
        show(output.shape)
      }; reduce it with .sum() or .mean()`,
    );
  }
  return expand(scalar(1, output.dtype, output.device), output.shape);
}

/**
 * What may change the gradients of a backward pass before they are added to `grad`: it replaces, adds
 * or takes out entries.
 *
 * @internal
 */
export type BackwardHook = (gradients: Map<Variable, Tensor>) => void;

const hooks = new Set<BackwardHook>();

/**
 * Calls `hook` at the end of each backward pass; returns what ends that.
 *
 * @internal
 */
export function onBackward(hook: BackwardHook): () => void {
  hooks.add(hook);
  return () => void hooks.delete(hook);
}

/** See `Tensor.backward`. */
export function backward(output: Tensor, seed?: Tensor): void {
  const g = rootGradient(output, seed);
  if (output.node.value !== null && !warned && output.device.backend) {
    warned = true;
    console.warn(
      "graft: the loss was read before backward(), which costs a second forward pass; read it after",
    );
  }
  withoutGradients(() => {
    const engine = new Engine();
    engine.seed(output.node, g);
    engine.run([output.node]);
    // A variable may have been read at several points of its life.
    const gradients = new Map<Variable, Tensor>();
    for (const [{ variable }, gradient] of engine.leaves) {
      if (!variable) continue;
      const before = gradients.get(variable);
      gradients.set(variable, before ? hoisted(() => before.add(gradient)) : gradient);
    }
    for (const hook of [...hooks]) hook(gradients);
    for (const [variable, gradient] of gradients) {
      const { grad } = variable;
      variable.grad = grad ? hoisted(() => grad.add(gradient)) : gradient;
    }
  });
}

/** Options of {@linkcode grad}. */
export interface GradOptions {
  /** Gradient of the output itself; default 1. */
  readonly seed?: Tensor;
  /** Record the gradient so that it can be differentiated again. Default false. */
  readonly createGraph?: boolean;
}

/**
 * Gradients of `output` with respect to `inputs`: variables that require one, or tensors made by
 * {@linkcode attach}. Touches no variable's `grad`. Null where the output does not depend on an input.
 *
 * @example The second derivative of x³
 * ```ts
 * import { grad, init, tensor, Variable } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const x = new Variable(tensor([2]), { requiresGrad: true });
 * const [first] = grad(x.mul(x).mul(x).sum(), [x], { createGraph: true });
 * const [second] = grad(first!.sum(), [x]);
 * console.log(await second!.data()); // Float32Array [12]
 * ```
 */
export function grad(
  output: Tensor,
  inputs: readonly Tensor[],
  options: GradOptions = {},
): (Tensor | null)[] {
  const g = rootGradient(output, options.seed);
  const run = options.createGraph ? withGradients : withoutGradients;
  return internally(() =>
    run(() => {
      const engine = new Engine();
      engine.seed(output.node, g);
      engine.run([output.node]);
      return inputs.map((input) => {
        const wanted = input.node;
        if (!isLeaf(wanted)) {
          throw new TypeError(
            "grad: needs variables that require a gradient, or tensors made by attach()",
          );
        }
        if (!wanted.variable) return engine.leaves.get(wanted) ?? null;
        // A variable may have been read at several points of its life.
        let total: Tensor | null = null;
        for (const [leaf, g] of engine.leaves) {
          if (leaf.variable === wanted.variable) total = total ? total.add(g) : g;
        }
        return total;
      });
    })
  );
}

/**
 * Runs `fn` without saving what its gradient needs: backward runs it again. Trades time for memory
 * (Chen et al. 2016, "Training deep nets with sublinear memory cost"). Random draws are repeated.
 *
 * @example
 * ```ts
 * import { checkpoint, init, tensor, Variable } from "@graft/ml";
 *
 * await init({ device: "cpu" });
 * const x = new Variable(tensor([1, 2]), { requiresGrad: true });
 * checkpoint((x) => x.mul(x).exp(), x).sum().backward();
 * console.log((await x.grad!.data()).length); // 2
 * ```
 */
export function checkpoint<T extends readonly Tensor[]>(
  fn: (...inputs: T) => Tensor,
  ...inputs: T
): Tensor {
  if (!recordsGradients()) return fn(...inputs);
  const generator = defaultGenerator();
  const state = generator.state();
  const out = withoutGradients(() => fn(...inputs));
  // Parameters that `fn` uses are not among the inputs, so its output may always want a gradient.
  return join(inputs, [out], true, (gs, _wrapped, engine) => {
    const leaves = inputs.map((i) => i.node.needsGrad ? attach(i) : i.detach());
    const now = generator.state();
    generator.load(state);
    const again = withGradients(() => fn(...leaves as unknown as T));
    generator.load(now);
    if (!again.node.needsGrad) return inputs.map(() => null);
    engine.seed(again.node, gs[0]!);
    engine.run([again.node]);
    return leaves.map((leaf) => {
      const g = engine.leaves.get(leaf.node) ?? null;
      engine.leaves.delete(leaf.node);
      return g;
    });
  })[0];
}

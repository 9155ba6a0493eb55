/**
 * What an op is. There are three kinds for who adds one: a *composite* is a plain function of other
 * ops; {@linkcode pointwise} makes an op from an expression; {@linkcode kernel} makes one from
 * hand-written code and the composed reference it must equal. The others (movement, reduction, fetch)
 * are the few structural ones that the planner knows.
 *
 * @module
 */

import { currentDevice, type Device } from "./device.ts";
import { type DType, isFloat } from "./dtype.ts";
import type { Expr } from "./expr.ts";
import { type Attrs, Node, type Output, record } from "./graph.ts";
import type { KernelCode } from "./kernel.ts";
import { broadcast, type Shape, show } from "./shape.ts";
import { NO_ATTRS } from "./signature.ts";
import { Tensor } from "./tensor.ts";
import { nextUid } from "./uid.ts";
import type { View } from "./view.ts";

/** What a gradient rule is given. `needs[i]` says whether input i wants one. */
export interface GradientContext {
  /** Gradient of the loss with respect to the output. */
  readonly g: Tensor;
  /** The same for each output of a kernel that has several, null where none came. */
  readonly gs: readonly (Tensor | null)[];
  /** What the op was given. */
  readonly inputs: readonly Tensor[];
  /** What it gave. */
  readonly out: Tensor;
  /** All of it, where there are several outputs. */
  readonly outs: readonly Tensor[];
  /** The op's structural settings. */
  readonly attrs: Attrs;
  /** Which inputs want a gradient. */
  readonly needs: readonly boolean[];
}

/**
 * The gradients with respect to the inputs, in their order; null where there is none. They may have
 * the broadcast shape: they are then summed to the input's.
 */
export type Gradient = (context: GradientContext) => readonly (Tensor | null)[];

/** Inputs for a test: shapes, dtypes and the range of their values. */
export interface SampleInput {
  readonly shape: Shape;
  readonly dtype?: DType;
  /** Values are uniform in [low, high); integers for integer dtypes. Default [-2, 2). */
  readonly low?: number;
  readonly high?: number;
  /** Not differentiated, though a float. */
  readonly constant?: boolean;
}

/** One case by which conformance tests an op on every backend. */
export interface Sample {
  readonly name?: string;
  readonly inputs: readonly SampleInput[];
  /** The call under test. */
  readonly call: (...inputs: Tensor[]) => Tensor;
  /** What it must equal, composed of other ops; where absent, the cpu's result is compared. */
  readonly reference?: (...inputs: Tensor[]) => Tensor;
  /** False where finite differences make no sense: steps, kinks, integers. */
  readonly differentiable?: boolean;
}

interface OpBase {
  readonly uid: number;
  readonly name: string;
  /** Null where nothing differentiable comes out. */
  readonly gradient: Gradient | null;
  readonly samples: readonly Sample[];
}

/** Data: host arrays, numbers, variables. */
export interface LeafOp extends OpBase {
  readonly kind: "leaf";
}
/** Element by element; shapes broadcast. */
export interface PointwiseOp extends OpBase {
  readonly kind: "pointwise";
  readonly expr: (args: readonly Expr[], attrs: Attrs, type: DType) => Expr;
  /** Rough cost, in additions: decides what is computed twice rather than stored. */
  readonly cost: number;
  /** The same on numbers, for tests. */
  readonly reference: (...args: number[]) => number;
  readonly domain: readonly (readonly [number, number])[];
  readonly dtypes: readonly DType[];
  /** The output's dtype, where it is not the last input's. */
  readonly output?: DType;
}
/** Coordinates along `attrs.dim`. */
export interface IotaOp extends OpBase {
  readonly kind: "iota";
}
/** Another view of the same elements. */
export interface MovementOp extends OpBase {
  readonly kind: "movement";
  /** The output's view given the input's; null where it takes a copy. */
  readonly view: (input: View, attrs: Attrs, shape: Shape) => View | null;
  /** Whether it brings in elements of its own (zeros). */
  readonly pads: boolean;
}
/** Combines along `attrs.axes`. */
export interface ReduceOp extends OpBase {
  readonly kind: "reduce";
  readonly combine: "sum" | "prod" | "max" | "min";
}
/** Elements of input 0 at indices given by input 1, along `attrs.axis`. */
export interface FetchOp extends OpBase {
  readonly kind: "fetch";
  readonly mode: "take" | "gather";
}
/** Input 0 with input 1 written over it from position input 2 (a number) of `attrs.axis` on. */
export interface UpdateOp extends OpBase {
  readonly kind: "update";
}
/** Hand-written code. Trailing inputs that are numbers become its scalars. */
export interface KernelOp extends OpBase {
  readonly kind: "kernel";
  readonly code: KernelCode;
  /** How many of the inputs, at the end, are per-step numbers. */
  readonly numbers: number;
}
/** An asynchronous function on the host, over the bytes of its inputs; see `host.ts`. */
export interface HostOp extends OpBase {
  readonly kind: "host";
}
/** Output `attrs.index` of a kernel with several, or of a host step. */
export interface PickOp extends OpBase {
  readonly kind: "pick";
}

/** Any op. */
export type Op =
  | LeafOp
  | PointwiseOp
  | IotaOp
  | MovementOp
  | ReduceOp
  | FetchOp
  | UpdateOp
  | KernelOp
  | HostOp
  | PickOp;

/** Gives an op its identity. */
export function defineOp<T extends Op>(op: Omit<T, "uid">): T {
  return { ...op, uid: nextUid() } as T;
}

/** The op `leaf` for data. */
export const leafOp: LeafOp = defineOp<LeafOp>({
  kind: "leaf",
  name: "leaf",
  gradient: null,
  samples: [],
});

/** The op `pick`. */
export const pickOp: PickOp = defineOp<PickOp>({
  kind: "pick",
  name: "pick",
  gradient: () => {
    throw new Error("pick: its gradient is part of its kernel's");
  },
  samples: [],
});

/** A number as a tensor of shape [], whose value is a per-step value of a plan. */
export function scalar(value: number, dtype: DType, device: Device): Tensor {
  if (!isFloat(dtype) && !Number.isInteger(value)) {
    throw new TypeError(
      `needs a whole number beside a tensor of dtype ${dtype}, got ${value}; convert the tensor with .to("f32") first`,
    );
  }
  return new Tensor(
    new Node(
      leafOp,
      [],
      { shape: [], dtype },
      NO_ATTRS,
      device,
      false,
      { kind: "number", number: value },
      null,
    ),
  );
}

/** Turns the numbers among `args` into tensors of the dtype and device of the first tensor. */
export function asTensors(
  name: string,
  args: readonly (Tensor | number)[],
): readonly Tensor[] {
  if (isAllTensors(args)) return args;
  const first = args.find((a) => a instanceof Tensor);
  return args.map((a) => {
    if (a instanceof Tensor) return a;
    if (typeof a !== "number") {
      throw new TypeError(`${name}: needs tensors or numbers, got ${a === null ? a : typeof a}`);
    }
    return scalar(a, first?.dtype ?? "f32", first?.device ?? currentDevice());
  });
}

function isAllTensors(args: readonly (Tensor | number)[]): args is readonly Tensor[] {
  for (let i = 0; i < args.length; i++) if (!(args[i] instanceof Tensor)) return false;
  return true;
}

/** What {@linkcode pointwise} needs to know. */
export interface PointwiseDefinition {
  /** For errors and profiles. */
  readonly name: string;
  /** The value of one element. It names primitives; WGSL and WASM come from it. */
  readonly expr: (args: readonly Expr[], attrs: Attrs, type: DType) => Expr;
  /** The gradient, beside the forward; null for an op with steps or integers alone. */
  readonly gradient: Gradient | null;
  /** The same function on numbers, by which the kernels are tested. */
  readonly reference: (...args: number[]) => number;
  /** Ranges of each argument in tests; also says how many there are. */
  readonly domain: readonly (readonly [number, number])[];
  /** Dtypes it takes. */
  readonly dtypes: readonly DType[];
  /** The output's dtype; default: the last input's. */
  readonly output?: DType;
  /** Rough cost in additions, default 1. */
  readonly cost?: number;
}

/** A pointwise op, callable. */
export interface PointwiseFunction {
  /** Records the op; numbers take the dtype of the first tensor, and shapes broadcast. */
  (...args: (Tensor | number)[]): Tensor;
  /**
   * The entry in the op table.
   *
   * @internal
   */
  readonly op: PointwiseOp;
}

/** Makes a pointwise op. See `docs/add-an-op.md`. */
export function pointwise(definition: PointwiseDefinition): PointwiseFunction {
  const { name } = definition;
  const op = defineOp<PointwiseOp>({
    kind: "pointwise",
    name,
    expr: definition.expr,
    gradient: definition.gradient,
    cost: definition.cost ?? 1,
    reference: definition.reference,
    domain: definition.domain,
    dtypes: definition.dtypes,
    output: definition.output,
    samples: [],
  });
  const call = (...args: (Tensor | number)[]): Tensor => {
    if (args.length !== op.domain.length) {
      throw new TypeError(`${name}: needs ${op.domain.length} arguments, got ${args.length}`);
    }
    const tensors = asTensors(name, args);
    return recordPointwise(op, tensors, NO_ATTRS);
  };
  return Object.assign(call, { op });
}

/** Records a pointwise op: checks dtypes, broadcasts shapes. */
export function recordPointwise(
  op: PointwiseOp,
  tensors: readonly Tensor[],
  attrs: Attrs,
): Tensor {
  const dtype = tensors[tensors.length - 1].dtype;
  let shape = tensors[0].shape;
  const inputs: Node[] = [];
  for (let i = 0; i < tensors.length; i++) {
    const t = tensors[i];
    inputs.push(t.node);
    // The first argument of `where` is a condition; all else is of one dtype.
    if (!(i === 0 && op.name === "where") && t.dtype !== dtype) {
      throw new TypeError(
        `${op.name}: needs both of one dtype, got ${
          tensors.map((t) => `${t.dtype}${show(t.shape)}`).join(" and ")
        }; convert one with .to(dtype)`,
      );
    }
    if (i > 0) shape = broadcast(op.name, shape, t.shape);
  }
  if (!op.dtypes.includes(dtype)) {
    throw new TypeError(`${op.name}: needs dtype ${op.dtypes.join(" or ")}, got ${dtype}`);
  }
  return new Tensor(record(op, inputs, { shape, dtype: op.output ?? dtype }, attrs));
}

/** What {@linkcode kernel} needs to know. */
export interface KernelDefinition {
  readonly code: KernelCode;
  readonly gradient: Gradient | null;
  readonly samples: readonly Sample[];
  /** How many trailing inputs are per-step numbers. */
  readonly numbers?: number;
}

/** Makes a kernel op. Record it with {@linkcode recordKernel}. */
export function kernel(definition: KernelDefinition): KernelOp {
  return defineOp<KernelOp>({
    kind: "kernel",
    name: definition.code.name,
    code: definition.code,
    gradient: definition.gradient,
    samples: definition.samples,
    numbers: definition.numbers ?? 0,
  });
}

/** Records a kernel; returns its outputs. */
export function recordKernel(
  op: KernelOp,
  inputs: readonly Tensor[],
  outputs: readonly Output[],
  attrs: Attrs,
): Tensor[] {
  const node = record(
    op,
    inputs.map((t) => t.node),
    outputs[0],
    attrs,
    outputs.length > 1 ? outputs : null,
  );
  if (outputs.length === 1) return [new Tensor(node)];
  const tensors = outputs.map((output, index) =>
    new Tensor(record(pickOp, [node], output, { index }))
  );
  node.picks = tensors;
  return tensors;
}

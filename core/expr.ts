/**
 * The expression language of generated kernels: what one element of a pointwise result, or one term
 * of a reduction, is computed from. Both backends generate their code from it. An expression is a
 * graph; a node reached twice is computed once.
 *
 * Coordinates are those of the kernel's iteration space (see {@linkcode LoopKernel}).
 *
 * @module
 */

import type { Register } from "./dtype.ts";

/** Primitive operations of one argument. `bitcast` and `cast` take their target from the node's type. */
export type Unary =
  | "neg"
  | "abs"
  | "floor"
  | "ceil"
  | "sqrt"
  | "rsqrt"
  | "exp"
  | "log"
  | "sin"
  | "cos"
  | "tanh"
  | "erf"
  | "not"
  | "isnan"
  | "cast"
  | "bitcast";

/**
 * Primitive operations of two arguments of one type. Comparisons give `bool`. Integer `div` and `rem`
 * truncate; shifts take the low five bits of a u32 right-hand side and `shr` of an i32 is arithmetic;
 * `and`, `or`, `xor` work on bits, or on truth values for `bool`.
 */
export type Binary =
  | "add"
  | "sub"
  | "mul"
  | "div"
  | "rem"
  | "pow"
  | "min"
  | "max"
  | "eq"
  | "ne"
  | "lt"
  | "le"
  | "gt"
  | "ge"
  | "and"
  | "or"
  | "xor"
  | "shl"
  | "shr";

/** A constant of the op itself, part of the kernel's code. */
export interface Const {
  /** Tells the kinds of node apart. */
  readonly kind: "const";
  /** The type of the value. */
  readonly type: Register;
  /** The value. */
  readonly value: number;
}

/** The coordinate along dimension `dim` of the iteration space. */
export interface Index {
  /** Tells the kinds of node apart. */
  readonly kind: "index";
  /** The type of the value. */
  readonly type: "i32";
  /** Which dimension of the iteration space. */
  readonly dim: number;
}

/** A per-step value: slot `slot` of the kernel's scalars. Never part of a plan's key. */
export interface Scalar {
  /** Tells the kinds of node apart. */
  readonly kind: "scalar";
  /** The type of the value. */
  readonly type: Register;
  /** Which of the kernel's scalars. */
  readonly slot: number;
}

/** Bounds of one iteration coordinate: valid where `low <= coordinate[dim] < high`. */
export interface Bound {
  /** Which coordinate. */
  readonly dim: number;
  /** First valid value. */
  readonly low: number;
  /** First value that is not valid any more. */
  readonly high: number;
}

/**
 * Element `offset + Σ strides[d] · coordinate[d]` of input `input`, and 0 where a bound does not
 * hold (the address may then lie outside the buffer, and is not read).
 */
export interface Load {
  /** Tells the kinds of node apart. */
  readonly kind: "load";
  /** The type of the value. */
  readonly type: Register;
  /** Which of the kernel's inputs. */
  readonly input: number;
  /** In elements, one for each dimension of the iteration space. */
  readonly strides: readonly number[];
  /** In elements. */
  readonly offset: number;
  /** Where the load is valid. */
  readonly bounds: readonly Bound[];
}

/**
 * A load whose address also depends on computed indices: as {@linkcode Load}, plus `index · stride`
 * for each of `at`. Gives 0 where an index is not in `[0, size)`.
 */
export interface Fetch {
  /** Tells the kinds of node apart. */
  readonly kind: "fetch";
  /** The type of the value. */
  readonly type: Register;
  /** Which of the kernel's inputs. */
  readonly input: number;
  /** In elements, one for each dimension of the iteration space. */
  readonly strides: readonly number[];
  /** In elements. */
  readonly offset: number;
  /** The computed indices, with stride and size in elements. */
  readonly at: readonly { readonly index: Expr; readonly stride: number; readonly size: number }[];
}

/** The value a hand-written kernel hands to its epilogue. */
export interface Acc {
  /** Tells the kinds of node apart. */
  readonly kind: "acc";
  /** The type of the value. */
  readonly type: Register;
}

/** A primitive operation applied. `select` is `args[0] ? args[1] : args[2]`. */
export interface Apply {
  /** Tells the kinds of node apart. */
  readonly kind: "apply";
  /** The type of the value. */
  readonly type: Register;
  /** The primitive. */
  readonly op: Unary | Binary | "select";
  /** Its arguments. */
  readonly args: readonly Expr[];
}

/** A node of an expression. */
export type Expr = Const | Index | Scalar | Load | Fetch | Acc | Apply;

const COMPARISONS = new Set<string>(["eq", "ne", "lt", "le", "gt", "ge", "isnan"]);

/** A constant. */
export function constant(type: Register, value: number): Const {
  return { kind: "const", type, value };
}

/** Applies a primitive; the result type follows from the arguments. */
export function apply(op: Exclude<Unary, "cast" | "bitcast"> | Binary, ...args: Expr[]): Apply {
  return { kind: "apply", type: COMPARISONS.has(op) ? "bool" : args[0].type, op, args };
}

/** `condition ? yes : no`. */
export function select(condition: Expr, yes: Expr, no: Expr): Apply {
  return { kind: "apply", type: yes.type, op: "select", args: [condition, yes, no] };
}

/** Converts a value: float to integer truncates towards zero and saturates; to bool is `!= 0`. */
export function cast(value: Expr, type: Register): Expr {
  return value.type === type ? value : { kind: "apply", type, op: "cast", args: [value] };
}

/** Reinterprets the 32 bits of a value (not for bool). */
export function bitcast(value: Expr, type: Register): Expr {
  return value.type === type ? value : { kind: "apply", type, op: "bitcast", args: [value] };
}

/** Every node of `bodies`, each once, arguments before what uses them. */
export function nodesOf(...bodies: readonly Expr[]): Expr[] {
  const seen = new Set<Expr>();
  const out: Expr[] = [];
  const visit = (e: Expr) => {
    if (seen.has(e)) return;
    seen.add(e);
    if (e.kind === "apply") e.args.forEach(visit);
    if (e.kind === "fetch") e.at.forEach((a) => visit(a.index));
    out.push(e);
  };
  bodies.forEach(visit);
  return out;
}

/**
 * `bodies` with each node replaced by what `change` makes of it; arguments are changed already. What
 * they shared they still share.
 */
export function rewrite(bodies: readonly Expr[], change: (e: Expr) => Expr): Expr[] {
  const made = new Map<Expr, Expr>();
  for (const e of nodesOf(...bodies)) {
    let next = e;
    if (e.kind === "apply") next = { ...e, args: e.args.map((a) => made.get(a)!) };
    if (e.kind === "fetch") {
      next = { ...e, at: e.at.map((a) => ({ ...a, index: made.get(a.index)! })) };
    }
    made.set(e, change(next));
  }
  return bodies.map((body) => made.get(body)!);
}

/** Loads and fetches of `bodies`, each once. */
export function accessesOf(...bodies: readonly Expr[]): (Load | Fetch)[] {
  return nodesOf(...bodies).filter((e) => e.kind === "load" || e.kind === "fetch");
}

/** How many operations `bodies` take; what they share counts once. */
export function operationsOf(...bodies: readonly Expr[]): number {
  return nodesOf(...bodies).filter((e) => e.kind === "apply").length;
}

/**
 * {@linkcode Expr} to WGSL: one `let` for each node that is not a leaf.
 *
 * @module
 */

import type { Register } from "../dtype.ts";
import type { Apply, Bound, Expr, Load } from "../expr.ts";
import type { WgslArray, WgslModule } from "./module.ts";

/** What an expression's leaves stand for. */
export interface ExprEnvironment {
  /** An i32 variable. */
  readonly coordinate: (dim: number) => string;
  /** The memory of an input. */
  readonly array: (input: number) => WgslArray;
  /** A variable that holds the load already; null: it is to be read here. */
  readonly load?: (load: Load) => string | null;
  /** The value of {@linkcode Acc}. */
  readonly acc?: string;
}

/** A literal of `type`. */
export function literalOf(module: WgslModule, type: Register, value: number): string {
  switch (type) {
    case "bool":
      return value ? "true" : "false";
    case "i32":
      // The most negative literal does not parse with its sign.
      return (value | 0) === -2147483648 ? "(-2147483647 - 1)" : `${value | 0}`;
    case "u32":
      return `${value >>> 0}u`;
    case "f32": {
      const v = Math.fround(value);
      if (Number.isNaN(v)) return `bitcast<f32>(${module.use("nonfinite") && "nan_bits"})`;
      if (!Number.isFinite(v)) {
        module.use("nonfinite");
        return v > 0 ? "bitcast<f32>(inf_bits)" : "(-bitcast<f32>(inf_bits))";
      }
      if (Object.is(v, -0)) return "-0.0f";
      return `${Number.isInteger(v) && Math.abs(v) < 1e9 ? v.toFixed(1) : v.toExponential(9)}f`;
    }
  }
}

/** `offset + Σ strides · coordinates` as an i32 expression. */
export function addressOf(
  strides: readonly number[],
  offset: number,
  coordinate: (dim: number) => string,
): string {
  const terms: string[] = [];
  strides.forEach((s, d) => {
    if (s !== 0) terms.push(s === 1 ? coordinate(d) : `${coordinate(d)} * ${literalI32(s)}`);
  });
  if (offset !== 0 || terms.length === 0) terms.push(literalI32(offset));
  return terms.join(" + ");
}

function literalI32(v: number): string {
  return v < 0 ? `(${v})` : `${v}`;
}

/** Whether the coordinate is within `bound`. */
export function boundText(bound: Bound, coordinate: (dim: number) => string): string {
  const c = coordinate(bound.dim);
  return `(${c} >= ${literalI32(bound.low)} && ${c} < ${literalI32(bound.high)})`;
}

const INFIX: Readonly<Record<string, string>> = {
  add: "+",
  sub: "-",
  mul: "*",
  div: "/",
  rem: "%",
  eq: "==",
  ne: "!=",
  lt: "<",
  le: "<=",
  gt: ">",
  ge: ">=",
  and: "&",
  or: "|",
  xor: "^",
};

/** The WGSL statements that compute `bodies`, and the names or literals that hold their values. */
export function emitExpr(
  module: WgslModule,
  bodies: readonly Expr[],
  environment: ExprEnvironment,
): { code: string; values: string[] } {
  const lines: string[] = [];
  const seen = new Map<Expr, string>();
  const bind = (text: string): string => {
    const name = module.name();
    lines.push(`let ${name} = ${text};`);
    return name;
  };
  const zero = (type: Register): string => literalOf(module, type, 0);

  const guarded = (input: number, type: Register, address: string, tests: string[]): string => {
    const array = environment.array(input);
    if (tests.length === 0) return bind(array.load(bind(address)));
    const ok = bind(tests.join(" && "));
    // Out-of-range addresses are not formed: the load of a dead lane is element 0.
    const at = bind(`select(0, ${address}, ${ok})`);
    return bind(`select(${zero(type)}, ${array.load(at)}, ${ok})`);
  };

  const visit = (e: Expr): string => {
    const known = seen.get(e);
    if (known !== undefined) return known;
    const text = emit(e);
    seen.set(e, text);
    return text;
  };

  const emit = (e: Expr): string => {
    switch (e.kind) {
      case "const":
        return literalOf(module, e.type, e.value);
      case "index":
        return environment.coordinate(e.dim);
      case "scalar":
        return module.scalar(e.slot);
      case "acc":
        if (environment.acc === undefined) throw new Error("expression: acc outside an epilogue");
        return environment.acc;
      case "load":
        return environment.load?.(e) ?? guarded(
          e.input,
          e.type,
          addressOf(e.strides, e.offset, environment.coordinate),
          e.bounds.map((b) => boundText(b, environment.coordinate)),
        );
      case "fetch": {
        let address = addressOf(e.strides, e.offset, environment.coordinate);
        const tests: string[] = [];
        for (const { index, stride, size } of e.at) {
          const i = index.type === "i32" ? bind(visit(index)) : bind(`i32(${visit(index)})`);
          tests.push(`(${i} >= 0 && ${i} < ${size})`);
          address += ` + ${i} * ${literalI32(stride)}`;
        }
        return guarded(e.input, e.type, address, tests);
      }
      case "apply": {
        // Arithmetic on literals alone is evaluated by the compiler, which rejects an overflow or a
        // division by zero that the language of expressions defines: so it is hidden from it.
        const hide = e.args.every((a) => a.kind === "const") || e.op === "div" || e.op === "rem";
        const args = e.args.map((a) => {
          const text = visit(a);
          return hide && a.kind === "const" ? bind(text) : text;
        });
        return bind(applyText(module, e, args));
      }
    }
  };

  const values = bodies.map(visit);
  return { code: lines.join("\n  "), values };
}

function applyText(module: WgslModule, e: Apply, args: readonly string[]): string {
  const [a, b, c] = args;
  const type = e.args[0].type;
  const float = type === "f32";
  switch (e.op) {
    case "neg":
      return type === "u32" ? `(~${a} + 1u)` : `-(${a})`;
    case "abs":
    case "floor":
    case "ceil":
    case "sqrt":
    case "exp":
      return type === "u32" || (!float && e.op !== "abs") ? a : `${e.op}(${a})`;
    case "rsqrt":
      return `inverseSqrt(${a})`;
    case "sin":
    case "cos":
    case "tanh":
    case "erf":
    case "log":
      return `${module.use(`${e.op}_f32`)}(${a})`;
    case "not":
      return type === "bool" ? `!(${a})` : `~(${a})`;
    case "isnan":
      return float ? `${module.use("is_nan")}(${a})` : "false";
    case "cast":
      return castText(module, a, type, e.type);
    case "bitcast":
      return `bitcast<${e.type}>(${a})`;
    case "select":
      return `select(${c}, ${b}, ${a})`;
    case "pow":
      if (!float) throw new Error(`pow: needs f32, got ${type}`);
      return powText(module, e, a, b);
    case "min":
    case "max":
      if (type === "bool") return e.op === "min" ? `(${a} && ${b})` : `(${a} || ${b})`;
      return `${e.op}(${a}, ${b})`;
    case "shl":
    case "shr":
      return `(${a} ${e.op === "shl" ? "<<" : ">>"} (${
        e.args[1].type === "u32" ? b : `bitcast<u32>(${b})`
      } & 31u))`;
    case "xor":
      if (type === "bool") return `(${a} != ${b})`;
      return `(${a} ^ ${b})`;
    case "lt":
    case "le":
    case "gt":
    case "ge":
      if (type === "bool") return `(u32(${a}) ${INFIX[e.op]} u32(${b}))`;
      return `(${a} ${INFIX[e.op]} ${b})`;
    default:
      return `(${a} ${INFIX[e.op]} ${b})`;
  }
}

function castText(module: WgslModule, a: string, from: Register, to: Register): string {
  if (to === "bool") {
    return from === "f32"
      ? `${module.use("truth")}(${a})`
      : `(${a} != ${from === "u32" ? "0u" : "0"})`;
  }
  if (from === "bool") return to === "f32" ? `select(0.0, 1.0, ${a})` : `${to}(${a})`;
  if (from === "f32") return `${module.use(to === "i32" ? "to_i32" : "to_u32")}(${a})`;
  return to === "f32" ? `f32(${a})` : `bitcast<${to}>(${a})`;
}

// Constant exponents that a product or a root gives exactly.
function powText(module: WgslModule, e: Apply, a: string, b: string): string {
  const y = e.args[1];
  if (y.kind === "const") {
    if (y.value === 2) return `${a} * ${a}`;
    if (y.value === 3) return `${a} * ${a} * ${a}`;
    if (y.value === -1) return `1.0 / ${a}`;
    if (y.value === 0.5) return `sqrt(${a})`;
    if (y.value === -0.5) return `inverseSqrt(${a})`;
  }
  return `${module.use("pow_f32")}(${a}, ${b})`;
}

/**
 * Primitive operations as vector instructions. A value in a register is a vector of four lanes: f32,
 * i32 or u32, and for bool a mask of all ones or zeros.
 *
 * @module
 */

import type { Register } from "../dtype.ts";
import type { Apply } from "../expr.ts";
import { type Code, f32x4, f64x2, i32, i32x4, type KernelFunc, type Local, v128 } from "../wasm.ts";

/** Emits `node`, applied to `args`; `uniform[i]` says whether all lanes of argument i are equal. */
export function emitApply(
  f: KernelFunc,
  node: Apply,
  args: readonly Local[],
  uniform: readonly boolean[],
): Code {
  const from = node.args[0].type;
  const [a, b, c] = args;
  switch (node.op) {
    case "select":
      return v128.bitselect(b, c, a);
    case "cast":
      return emitCast(f, from, node.type, a);
    case "bitcast":
      return a;
    case "not":
      return v128.not(a);
    case "isnan":
      return f32x4.ne(a, a);
    case "shl":
    case "shr":
      return emitShift(
        f,
        node.op === "shl" ? "shl" : from === "i32" ? "shr_s" : "shr_u",
        a,
        b,
        uniform[1],
      );
    case "and":
      return v128.and(a, b);
    case "or":
      return v128.or(a, b);
    case "xor":
      return v128.xor(a, b);
  }
  if (from === "bool") return emitBool(node.op, a, b);
  return from === "f32" ? emitFloat(f, node, a, b) : emitInteger(f, node.op, from, a, b);
}

function unsupported(op: string, type: Register): Error {
  return new Error(`${op} of ${type}: the operation is not defined for this type`);
}

function emitBool(op: string, a: Local, b: Local): Code {
  switch (op) {
    case "eq":
      return v128.not(v128.xor(a, b));
    case "ne":
    case "add":
    case "sub":
      return op === "add" ? v128.or(a, b) : v128.xor(a, b);
    case "lt":
      return v128.andnot(b, a);
    case "gt":
      return v128.andnot(a, b);
    case "le":
      return v128.or(b, v128.not(a));
    case "ge":
      return v128.or(a, v128.not(b));
    case "min":
    case "mul":
      return v128.and(a, b);
    case "max":
      return v128.or(a, b);
    default:
      throw unsupported(op, "bool");
  }
}

function emitFloat(f: KernelFunc, node: Apply, a: Local, b: Local): Code {
  const v = f.vectors;
  switch (node.op) {
    case "neg":
      return f32x4.neg(a);
    case "abs":
      return f32x4.abs(a);
    case "floor":
      return f32x4.floor(a);
    case "ceil":
      return f32x4.ceil(a);
    case "sqrt":
      return f32x4.sqrt(a);
    case "rsqrt":
      return f32x4.div(v.constant(1), f32x4.sqrt(a));
    case "exp":
      return v.exp(a);
    case "log":
      return v.log(a);
    case "sin":
      return v.sin(a);
    case "cos":
      return v.cos(a);
    case "tanh":
      return v.tanh(a);
    case "erf":
      return v.erf(a);
    case "pow":
      return emitPow(f, node, a, b);
    case "add":
      return f32x4.add(a, b);
    case "sub":
      return f32x4.sub(a, b);
    case "mul":
      return f32x4.mul(a, b);
    case "div":
      return f32x4.div(a, b);
    case "rem": {
      // Exact while the quotient is below 2^24; one correction mends a quotient rounded up.
      const q = f.let(f32x4.trunc(f32x4.div(a, b)));
      const r = f.let(v.madd(f32x4.neg(q), b, a));
      const wrong = v128.and(
        f32x4.ne(r, v128.zero()),
        i32x4.lt_s(v128.xor(r, a), v128.zero()),
      );
      const step = v128.or(
        f32x4.abs(b),
        v128.and(a, f.hoist(i32x4.const(0x80000000 | 0))),
      );
      return f32x4.add(r, v128.and(wrong, step));
    }
    case "min":
      return f32x4.min(a, b);
    case "max":
      return f32x4.max(a, b);
    case "eq":
      return f32x4.eq(a, b);
    case "ne":
      return f32x4.ne(a, b);
    case "lt":
      return f32x4.lt(a, b);
    case "le":
      return f32x4.le(a, b);
    case "gt":
      return f32x4.gt(a, b);
    case "ge":
      return f32x4.ge(a, b);
    default:
      throw unsupported(node.op, "f32");
  }
}

/** Powers whose exponent is a small constant are products and roots. */
function emitPow(f: KernelFunc, node: Apply, a: Local, b: Local): Code {
  const exponent = node.args[1];
  if (exponent.kind === "const") {
    const one = f.vectors.constant(1);
    const square = () => f.let(f32x4.mul(a, a));
    switch (exponent.value) {
      case 1:
        return a;
      case 2:
        return square();
      case 3:
        return f32x4.mul(square(), a);
      case 4: {
        const s = square();
        return f32x4.mul(s, s);
      }
      case -1:
        return f32x4.div(one, a);
      case -2:
        return f32x4.div(one, square());
    }
  }
  return f.vectors.pow(a, b);
}

function emitInteger(
  f: KernelFunc,
  op: string,
  type: "i32" | "u32",
  a: Local,
  b: Local,
): Code {
  const signed = type === "i32";
  switch (op) {
    case "neg":
      return i32x4.neg(a);
    case "abs":
      return signed ? i32x4.abs(a) : a;
    case "floor":
    case "ceil":
      return a;
    case "add":
      return i32x4.add(a, b);
    case "sub":
      return i32x4.sub(a, b);
    case "mul":
      return i32x4.mul(a, b);
    case "div":
      return divide(f, signed, a, b).quotient;
    case "rem": {
      const { quotient, divisor } = divide(f, signed, a, b);
      return i32x4.sub(a, i32x4.mul(quotient, divisor));
    }
    case "min":
      return signed ? i32x4.min_s(a, b) : i32x4.min_u(a, b);
    case "max":
      return signed ? i32x4.max_s(a, b) : i32x4.max_u(a, b);
    case "eq":
      return i32x4.eq(a, b);
    case "ne":
      return i32x4.ne(a, b);
    case "lt":
      return signed ? i32x4.lt_s(a, b) : i32x4.lt_u(a, b);
    case "le":
      return signed ? i32x4.le_s(a, b) : i32x4.le_u(a, b);
    case "gt":
      return signed ? i32x4.gt_s(a, b) : i32x4.gt_u(a, b);
    case "ge":
      return signed ? i32x4.ge_s(a, b) : i32x4.ge_u(a, b);
    default:
      throw unsupported(op, type);
  }
}

/**
 * Quotients through f64, which is exact for 32 bits. As in WGSL, a divisor of 0, and of -1 where the
 * quotient would not fit, counts as 1.
 */
function divide(
  f: KernelFunc,
  signed: boolean,
  a: Local,
  b: Local,
): { quotient: Local; divisor: Local } {
  let bad = i32x4.eq(b, v128.zero());
  if (signed) {
    const least = i32x4.eq(a, f.hoist(i32x4.const(0x80000000 | 0)));
    bad = v128.or(bad, v128.and(least, i32x4.eq(b, f.hoist(i32x4.const(-1)))));
  }
  const divisor = f.let(v128.bitselect(f.hoist(i32x4.const(1)), b, bad));
  const wide = signed ? f64x2.convert_low_i32x4_s : f64x2.convert_low_i32x4_u;
  const back = signed ? i32x4.trunc_sat_f64x2_s_zero : i32x4.trunc_sat_f64x2_u_zero;
  const high = (x: Code) => v128.shuffle(x, x, [2, 3, 2, 3]);
  const quotient = f.let(v128.shuffle(
    back(f64x2.div(wide(a), wide(divisor))),
    back(f64x2.div(wide(high(a)), wide(high(divisor)))),
    [0, 1, 4, 5],
  ));
  return { quotient, divisor };
}

function emitShift(
  f: KernelFunc,
  op: "shl" | "shr_s" | "shr_u",
  a: Local,
  by: Local,
  uniform: boolean,
): Code {
  // The instructions take the count modulo 32.
  if (uniform) return i32x4[op](a, i32x4.extract_lane(by, 0));
  const out = f.let(a);
  for (let i = 0; i < 4; i++) {
    const shifted = i32[op](i32x4.extract_lane(a, i), i32x4.extract_lane(by, i));
    f.set(out, i32x4.replace_lane(out, i, shifted));
  }
  return out;
}

function emitCast(f: KernelFunc, from: Register, to: Register, a: Local): Code {
  if (from === to) return a;
  if (from === "bool") {
    return v128.and(a, f.hoist(to === "f32" ? f32x4.const(1) : i32x4.const(1)));
  }
  if (to === "bool") {
    return from === "f32" ? f32x4.ne(a, v128.zero()) : i32x4.ne(a, v128.zero());
  }
  if (to === "f32") {
    return from === "i32" ? f32x4.convert_i32x4_s(a) : f32x4.convert_i32x4_u(a);
  }
  if (from !== "f32") return a;
  return to === "i32" ? i32x4.trunc_sat_f32x4_s(a) : i32x4.trunc_sat_f32x4_u(a);
}

/** Rough cycles of a node for one vector. */
export function costOf(op: string, type: Register): number {
  switch (op) {
    case "exp":
      return 10;
    case "log":
    case "sin":
    case "cos":
      return 18;
    case "tanh":
    case "erf":
      return 25;
    case "pow":
      return 80;
    case "div":
    case "rem":
      return type === "f32" ? 4 : 16;
    case "sqrt":
    case "rsqrt":
      return 6;
    case "cast":
      return 3;
    default:
      return 1;
  }
}

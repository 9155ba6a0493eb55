/**
 * The meaning of a loop kernel, element by element on numbers: what backends are tested against.
 *
 * @module
 */

import { bytesOf, type DType, type HostArray, type Register } from "../../core/dtype.ts";
import type { Expr } from "../../core/expr.ts";
import { bodiesOf, type LoopKernel } from "../../core/kernel.ts";

const bits = new DataView(new ArrayBuffer(4));

/** The number that element `i` of a host array stands for. */
export function decode(dtype: DType, data: HostArray, i: number): number {
  if (i < 0 || i >= data.length) throw new Error(`${dtype} element ${i} of ${data.length}`);
  switch (dtype) {
    case "f16":
      return new Float16Array(data.buffer, data.byteOffset, data.length)[i];
    case "bf16":
      bits.setUint32(0, data[i] << 16);
      return bits.getFloat32(0);
    default:
      return data[i];
  }
}

/** Rounds a number to what `dtype` holds. */
export function round(dtype: DType, x: number): number {
  switch (dtype) {
    case "f32":
      return Math.fround(x);
    case "f16":
      return new Float16Array([x])[0];
    case "bf16": {
      if (Number.isNaN(x)) return NaN;
      bits.setFloat32(0, x);
      const u = bits.getUint32(0);
      bits.setUint32(0, ((u + 0x7fff + ((u >>> 16) & 1)) & 0xffff0000) >>> 0);
      return bits.getFloat32(0);
    }
    case "i32":
      return x | 0;
    case "u32":
      return x >>> 0;
    case "bool":
      return x ? 1 : 0;
  }
}

/** A host array of `dtype` that holds `values`. */
export function encode(dtype: DType, values: readonly number[]): HostArray {
  switch (dtype) {
    case "f32":
      return Float32Array.from(values);
    case "i32":
      return Int32Array.from(values);
    case "f16":
      return new Uint16Array(Float16Array.from(values).buffer);
    case "bf16":
      return Uint16Array.from(values, (x) => {
        bits.setFloat32(0, round("bf16", x));
        return bits.getUint16(0);
      });
    default:
      return Uint32Array.from(values);
  }
}

/** Decodes a whole array. */
export function decodeAll(dtype: DType, data: HostArray): number[] {
  return Array.from({ length: data.length }, (_, i) => decode(dtype, data, i));
}

function wrap(type: Register, x: number): number {
  return type === "f32" ? Math.fround(x) : type === "i32" ? x | 0 : type === "u32" ? x >>> 0 : x;
}

/** Reads a scalar's bits as `type`. */
function scalarOf(type: Register, word: number): number {
  bits.setUint32(0, word);
  return type === "f32" ? bits.getFloat32(0) : wrap(type, word);
}

function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 2.5) {
    // The continued fraction of 1 - erf.
    let f = 0;
    for (let k = 200; k >= 1; k--) f = k / 2 / (z + f);
    return Math.sign(x) * (1 - Math.exp(-z * z) / Math.sqrt(Math.PI) / (z + f));
  }
  let sum = 0;
  let term = z;
  for (let k = 0; k < 200; k++) {
    sum += term / (2 * k + 1);
    term *= -z * z / (k + 1);
  }
  return Math.sign(x) * 2 / Math.sqrt(Math.PI) * sum;
}

function apply(op: string, from: Register, to: Register, a: number, b: number, c: number): number {
  const int = from === "i32" || from === "u32";
  switch (op) {
    case "neg":
      return -a;
    case "abs":
      return Math.abs(a);
    case "floor":
      return Math.floor(a);
    case "ceil":
      return Math.ceil(a);
    case "sqrt":
      return Math.sqrt(a);
    case "rsqrt":
      return 1 / Math.sqrt(a);
    case "exp":
      return Math.exp(a);
    case "log":
      return Math.log(a);
    case "sin":
      return Math.sin(a);
    case "cos":
      return Math.cos(a);
    case "tanh":
      return Math.tanh(a);
    case "erf":
      return erf(a);
    case "not":
      return from === "bool" ? (a ? 0 : 1) : ~a;
    case "isnan":
      return Number.isNaN(a) ? 1 : 0;
    case "cast":
      if (to === "bool") return a !== 0 ? 1 : 0;
      if (from === "f32" && to === "i32") {
        return Number.isNaN(a) ? 0 : Math.min(Math.max(Math.trunc(a), -(2 ** 31)), 2 ** 31 - 1);
      }
      if (from === "f32" && to === "u32") {
        return Number.isNaN(a) ? 0 : Math.min(Math.max(Math.trunc(a), 0), 2 ** 32 - 1);
      }
      return a;
    case "bitcast":
      if (from === "f32") {
        bits.setFloat32(0, a);
        return to === "i32" ? bits.getInt32(0) : bits.getUint32(0);
      }
      bits.setUint32(0, a);
      return to === "f32" ? bits.getFloat32(0) : a;
    case "add":
      return a + b;
    case "sub":
      return a - b;
    case "mul":
      return int ? Math.imul(a, b) : a * b;
    case "div":
      if (!int) return a / b;
      return b === 0 ? a : Math.trunc(a / b);
    case "rem":
      if (!int) return a % b;
      return b === 0 ? 0 : a % b;
    case "pow":
      return Math.pow(a, b);
    case "min":
      return Math.min(a, b);
    case "max":
      return Math.max(a, b);
    case "eq":
      return a === b ? 1 : 0;
    case "ne":
      return a !== b ? 1 : 0;
    case "lt":
      return a < b ? 1 : 0;
    case "le":
      return a <= b ? 1 : 0;
    case "gt":
      return a > b ? 1 : 0;
    case "ge":
      return a >= b ? 1 : 0;
    case "and":
      return a & b;
    case "or":
      return a | b;
    case "xor":
      return a ^ b;
    case "shl":
      return a << (b & 31);
    case "shr":
      return from === "i32" ? a >> (b & 31) : (a >>> 0) >>> (b & 31);
    case "select":
      return a ? b : c;
    default:
      throw new Error(op);
  }
}

/** Writes what `kernel` computes into `outputs`. */
export function interpret(
  kernel: LoopKernel,
  inputs: readonly HostArray[],
  scalars: Uint32Array,
  ...outputs: readonly HostArray[]
): void {
  const { shape, reduced, combine, body, write } = kernel;
  const rank = shape.length - reduced;
  const at = shape.map(() => 0);
  const evaluate = (root: Expr): number => {
    const seen = new Map<Expr, number>();
    const value = (e: Expr): number => {
      let v = seen.get(e);
      if (v === undefined) {
        v = compute(e);
        seen.set(e, v);
      }
      return v;
    };
    const compute = (e: Expr): number => {
      switch (e.kind) {
        case "const":
          return wrap(e.type, e.value);
        case "index":
          return at[e.dim];
        case "scalar":
          return scalarOf(e.type, scalars[e.slot]);
        case "acc":
          throw new Error("acc");
        case "load": {
          if (e.bounds.some((b) => at[b.dim] < b.low || at[b.dim] >= b.high)) return 0;
          const i = e.strides.reduce((n, s, d) => n + s * at[d], e.offset);
          return decode(kernel.inputs[e.input], inputs[e.input], i);
        }
        case "fetch": {
          let i = e.strides.reduce((n, s, d) => n + s * at[d], e.offset);
          for (const a of e.at) {
            const index = value(a.index);
            if (index < 0 || index >= a.size) return 0;
            i += index * a.stride;
          }
          return decode(kernel.inputs[e.input], inputs[e.input], i);
        }
        case "apply": {
          const [a, b, c] = e.args.map(value);
          const from = e.args[0].type;
          return wrap(e.type, apply(e.op, from, e.type, a, b, c));
        }
      }
    };
    return value(root);
  };
  const moved = write.slot === undefined ? 0 : (scalars[write.slot] | 0) * (write.stride ?? 0);
  const { type } = body;
  const fold = (a: number, b: number): number => {
    if (combine === "max") return Math.max(a, b);
    if (combine === "min") return Math.min(a, b);
    if (type === "f32") return combine === "sum" ? a + b : a * b;
    return wrap(type, combine === "sum" ? a + b : Math.imul(a, b));
  };
  const empty = { sum: 0, prod: 1, max: -Infinity, min: Infinity };
  const clamp = (x: number) =>
    type === "i32"
      ? Math.min(Math.max(x, -(2 ** 31)), 2 ** 31 - 1)
      : type === "u32"
      ? Math.min(Math.max(x, 0), 2 ** 32 - 1)
      : type === "bool"
      ? Math.min(Math.max(x, 0), 1)
      : x;
  const walk = (d: number, end: number, visit: () => void) => {
    if (d === end) return visit();
    for (let c = 0; c < shape[d]; c++) {
      at[d] = c;
      walk(d + 1, end, visit);
    }
  };
  walk(0, rank, () => {
    let results: number[];
    if (reduced === 0) results = bodiesOf(kernel).map(evaluate);
    else {
      results = [clamp(empty[combine!])];
      walk(rank, shape.length, () => {
        results = [fold(results[0], evaluate(body))];
      });
    }
    const i = write.strides.reduce((n, s, d) => n + s * at[d], write.offset) + moved;
    results.forEach((result, k) => {
      [outputs[k][i]] = encode(kernel.output, [round(kernel.output, result)]);
    });
  });
}

/** Elements a buffer of `dtype` holds in `bytes`. */
export function elementsOf(dtype: DType, bytes: number): number {
  return bytes / bytesOf(dtype);
}

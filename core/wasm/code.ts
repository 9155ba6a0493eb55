/**
 * Pieces of WASM code that leave one value on the stack, and the instructions that combine them. The
 * names are those of the WASM text format: `i32.add(a, b)`, `f32x4.mul(a, b)`, `v128.load(address)`.
 *
 * @module
 */

/** A WASM value type. */
export type ValueType = "i32" | "i64" | "f32" | "f64" | "v128";

/** Code that pushes one value; it may be emitted any number of times. */
export class Code {
  readonly type: ValueType;
  readonly bytes: readonly number[];
  /** The value, where it is a constant i32. */
  readonly constant: number | null;

  constructor(type: ValueType, bytes: readonly number[], constant: number | null = null) {
    this.type = type;
    this.bytes = bytes;
    this.constant = constant;
  }
}

/** A local variable of a function; as code, its value. */
export class Local extends Code {
  readonly index: number;

  constructor(type: ValueType, index: number) {
    super(type, [0x20, ...unsigned(index)]);
    this.index = index;
  }
}

/** An i32, given as code or as a number. */
export type Int = Code | number;

/** LEB128 of an unsigned number. */
export function unsigned(value: number): number[] {
  const out: number[] = [];
  do {
    const low = value % 128;
    value = Math.floor(value / 128);
    out.push(value > 0 ? low + 128 : low);
  } while (value > 0);
  return out;
}

/** LEB128 of a signed 32-bit number. */
export function signed(value: number): number[] {
  const out: number[] = [];
  value |= 0;
  for (;;) {
    const low = value & 127;
    value >>= 7;
    if ((value === 0 && !(low & 64)) || (value === -1 && low & 64)) return [...out, low];
    out.push(low | 128);
  }
}

const scratch = new DataView(new ArrayBuffer(8));

function f32Bytes(value: number): number[] {
  scratch.setFloat32(0, value, true);
  return [0, 1, 2, 3].map((i) => scratch.getUint8(i));
}

function u32Bytes(value: number): number[] {
  return [value & 255, (value >>> 8) & 255, (value >>> 16) & 255, value >>> 24];
}

function f64Bytes(value: number): number[] {
  scratch.setFloat64(0, value, true);
  return [0, 1, 2, 3, 4, 5, 6, 7].map((i) => scratch.getUint8(i));
}

/** An i32 constant, or the code itself. */
export function int(value: Int): Code {
  if (typeof value !== "number") return value;
  return new Code("i32", [0x41, ...signed(value)], value | 0);
}

/** What the instructions of one, two and three operands are. */
export type Unary = (a: Code) => Code;
export type Binary = (a: Code, b: Code) => Code;
export type Ternary = (a: Code, b: Code, c: Code) => Code;
export type IntUnary = (a: Int) => Code;
export type IntBinary = (a: Int, b: Int) => Code;

export type Shift = (a: Code, count: Int) => Code;
export type Lane = (a: Code, index: number) => Code;
export type Replace = (a: Code, index: number, value: Int) => Code;

const un = (type: ValueType, ...op: number[]): Unary => (a) => new Code(type, [...a.bytes, ...op]);
const bin = (type: ValueType, ...op: number[]): Binary => (a, b) =>
  new Code(type, [...a.bytes, ...b.bytes, ...op]);
const intUn = (op: number): IntUnary => (a) => new Code("i32", [...int(a).bytes, op]);
const intBin = (op: number): IntBinary => (a, b) =>
  new Code("i32", [...int(a).bytes, ...int(b).bytes, op]);

function vec(op: number): number[] {
  return [0xfd, ...unsigned(op)];
}
const vUn = (op: number): Unary => un("v128", ...vec(op));
const vBin = (op: number): Binary => bin("v128", ...vec(op));
const vTri = (op: number): Ternary => (a, b, c) =>
  new Code("v128", [...a.bytes, ...b.bytes, ...c.bytes, ...vec(op)]);
const vShift = (op: number): Shift => (a, n) =>
  new Code("v128", [...a.bytes, ...int(n).bytes, ...vec(op)]);
const vSplat = (op: number): IntUnary => (a) => new Code("v128", [...int(a).bytes, ...vec(op)]);
const lane = (type: ValueType, op: number): Lane => (a, index) =>
  new Code(type, [...a.bytes, ...vec(op), index]);
const replace = (op: number): Replace => (a, index, value) =>
  new Code("v128", [...a.bytes, ...int(value).bytes, ...vec(op), index]);

/** A load from `address + offset`. */
export type Load = (address: Int, offset?: number) => Code;

const load = (type: ValueType, align: number, ...op: number[]): Load => (address, offset = 0) =>
  new Code(type, [...int(address).bytes, ...op, align, ...unsigned(offset)]);
const vLoad = (op: number, align: number): Load => load("v128", align, ...vec(op));
/** A load into one lane. */
export type LaneLoad = (address: Int, value: Code, index: number, offset?: number) => Code;
const laneLoad = (op: number, align: number): LaneLoad => (address, value, index, offset = 0) =>
  new Code("v128", [
    ...int(address).bytes,
    ...value.bytes,
    ...vec(op),
    align,
    ...unsigned(offset),
    index,
  ]);

/** Sum of i32s; constants are folded. */
export function add(...terms: Int[]): Code {
  let constant = 0;
  let sum: Code | null = null;
  for (const term of terms) {
    const code = int(term);
    if (code.constant !== null) constant = (constant + code.constant) | 0;
    else sum = sum === null ? code : i32.add(sum, code);
  }
  if (sum === null) return int(constant);
  return constant === 0 ? sum : i32.add(sum, constant);
}

/** Product of two i32s; constants are folded, powers of two become shifts. */
export function mul(a: Int, b: Int): Code {
  const x = int(a);
  const y = int(b);
  if (x.constant !== null && y.constant !== null) return int(Math.imul(x.constant, y.constant));
  if (x.constant !== null) return mul(y, x);
  if (y.constant === null) return i32.mul(x, y);
  if (y.constant === 0) return int(0);
  if (y.constant === 1) return x;
  const power = Math.log2(y.constant);
  return y.constant > 0 && Number.isInteger(power) ? i32.shl(x, power) : i32.mul(x, y);
}

/** `condition ? yes : no`, both evaluated. */
export function choose(condition: Int, yes: Int, no: Int): Code {
  const y = int(yes);
  return new Code(y.type, [...y.bytes, ...int(no).bytes, ...int(condition).bytes, 0x1b]);
}

/** The smaller of two i32s; evaluates both twice. */
export function least(a: Int, b: Int): Code {
  const x = int(a);
  const y = int(b);
  if (x.constant !== null && y.constant !== null) return int(Math.min(x.constant, y.constant));
  return choose(i32.lt_s(a, b), a, b);
}

/** The larger of two i32s; evaluates both twice. */
export function most(a: Int, b: Int): Code {
  const x = int(a);
  const y = int(b);
  if (x.constant !== null && y.constant !== null) return int(Math.max(x.constant, y.constant));
  return choose(i32.gt_s(a, b), a, b);
}

/** Instructions on i32; numbers stand for constants. */
export const i32 = {
  const: (value: number): Code => int(value),
  eqz: intUn(0x45) as IntUnary,
  eq: intBin(0x46) as IntBinary,
  ne: intBin(0x47) as IntBinary,
  lt_s: intBin(0x48) as IntBinary,
  lt_u: intBin(0x49) as IntBinary,
  gt_s: intBin(0x4a) as IntBinary,
  gt_u: intBin(0x4b) as IntBinary,
  le_s: intBin(0x4c) as IntBinary,
  le_u: intBin(0x4d) as IntBinary,
  ge_s: intBin(0x4e) as IntBinary,
  ge_u: intBin(0x4f) as IntBinary,
  add: intBin(0x6a) as IntBinary,
  sub: intBin(0x6b) as IntBinary,
  mul: intBin(0x6c) as IntBinary,
  div_s: intBin(0x6d) as IntBinary,
  div_u: intBin(0x6e) as IntBinary,
  rem_s: intBin(0x6f) as IntBinary,
  rem_u: intBin(0x70) as IntBinary,
  and: intBin(0x71) as IntBinary,
  or: intBin(0x72) as IntBinary,
  xor: intBin(0x73) as IntBinary,
  shl: intBin(0x74) as IntBinary,
  shr_s: intBin(0x75) as IntBinary,
  shr_u: intBin(0x76) as IntBinary,
  wrap_i64: un("i32", 0xa7) as Unary,
  load: load("i32", 2, 0x28) as Load,
  load16_u: load("i32", 1, 0x2f) as Load,
};

/** Instructions on i64. */
export const i64 = {
  /** A constant below 2^31 in magnitude. */
  const: (value: number): Code => new Code("i64", [0x42, ...signed(value)]),
  extend_i32_u: (a: Int): Code => new Code("i64", [...int(a).bytes, 0xad]),
  eq: bin("i32", 0x51) as Binary,
  add: bin("i64", 0x7c) as Binary,
  sub: bin("i64", 0x7d) as Binary,
  or: bin("i64", 0x84) as Binary,
  shl: bin("i64", 0x86) as Binary,
  shr_u: bin("i64", 0x88) as Binary,
};

/** Instructions on f32. */
export const f32 = {
  const: (value: number): Code => new Code("f32", [0x43, ...f32Bytes(value)]),
  add: bin("f32", 0x92) as Binary,
  sub: bin("f32", 0x93) as Binary,
  mul: bin("f32", 0x94) as Binary,
  div: bin("f32", 0x95) as Binary,
  eq: bin("i32", 0x5b) as Binary,
  gt: bin("i32", 0x5e) as Binary,
  load: load("f32", 2, 0x2a) as Load,
};

/** Instructions on whole vectors. */
export const v128 = {
  load: vLoad(0, 0) as Load,
  load16x4_u: vLoad(4, 0) as Load,
  load32_splat: vLoad(9, 0) as Load,
  load32_zero: vLoad(0x5c, 0) as Load,
  load64_zero: vLoad(0x5d, 0) as Load,
  load16_lane: laneLoad(0x55, 0) as LaneLoad,
  load32_lane: laneLoad(0x56, 0) as LaneLoad,
  load64_lane: laneLoad(0x57, 0) as LaneLoad,
  not: vUn(0x4d) as Unary,
  and: vBin(0x4e) as Binary,
  andnot: vBin(0x4f) as Binary,
  or: vBin(0x50) as Binary,
  xor: vBin(0x51) as Binary,
  /** Bits of `a` where `mask` is set, else of `b`. */
  bitselect: vTri(0x52) as Ternary,
  any_true: un("i32", ...vec(0x53)) as Unary,
  zero: (): Code => new Code("v128", [...vec(0x0c), ...new Array<number>(16).fill(0)]),
  /** 32-bit lanes `indices` of `a` (0 to 3) and `b` (4 to 7). */
  shuffle: (a: Code, b: Code, indices: readonly number[]): Code =>
    new Code("v128", [
      ...a.bytes,
      ...b.bytes,
      ...vec(0x0d),
      ...indices.flatMap((i) => [4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3]),
    ]),
  /** Bytes `indices` of `a` (0 to 15) and `b` (16 to 31). */
  shuffle_bytes: (a: Code, b: Code, indices: readonly number[]): Code =>
    new Code("v128", [...a.bytes, ...b.bytes, ...vec(0x0d), ...indices]),
  /** Byte i is byte `indices[i]` of `table`; 0 where that is above 15. */
  swizzle: vBin(0x0e) as Binary,
};

/** Instructions on four i32 lanes. */
export const i32x4 = {
  const: (...lanes: number[]): Code => {
    const all = lanes.length === 1 ? [lanes[0], lanes[0], lanes[0], lanes[0]] : lanes;
    return new Code("v128", [...vec(0x0c), ...all.flatMap(u32Bytes)]);
  },
  splat: vSplat(0x11) as IntUnary,
  extract_lane: lane("i32", 0x1b) as Lane,
  replace_lane: replace(0x1c) as Replace,
  eq: vBin(0x37) as Binary,
  ne: vBin(0x38) as Binary,
  lt_s: vBin(0x39) as Binary,
  lt_u: vBin(0x3a) as Binary,
  gt_s: vBin(0x3b) as Binary,
  gt_u: vBin(0x3c) as Binary,
  le_s: vBin(0x3d) as Binary,
  le_u: vBin(0x3e) as Binary,
  ge_s: vBin(0x3f) as Binary,
  ge_u: vBin(0x40) as Binary,
  abs: vUn(0xa0) as Unary,
  neg: vUn(0xa1) as Unary,
  shl: vShift(0xab) as Shift,
  shr_s: vShift(0xac) as Shift,
  shr_u: vShift(0xad) as Shift,
  add: vBin(0xae) as Binary,
  sub: vBin(0xb1) as Binary,
  mul: vBin(0xb5) as Binary,
  min_s: vBin(0xb6) as Binary,
  min_u: vBin(0xb7) as Binary,
  max_s: vBin(0xb8) as Binary,
  max_u: vBin(0xb9) as Binary,
  extend_low_i16x8_u: vUn(0xa9) as Unary,
  extend_low_i16x8_s: vUn(0xa7) as Unary,
  extend_high_i16x8_s: vUn(0xa8) as Unary,
  trunc_sat_f32x4_s: vUn(0xf8) as Unary,
  trunc_sat_f32x4_u: vUn(0xf9) as Unary,
  trunc_sat_f64x2_s_zero: vUn(0xfc) as Unary,
  trunc_sat_f64x2_u_zero: vUn(0xfd) as Unary,
  /** Packs the low halves' saturated values; here lanes already fit in 16 bits. */
  narrow_u: vBin(0x86) as Binary,
};

/** Instructions on eight i16 lanes. */
export const i16x8 = {
  extend_low_i8x16_s: vUn(0x87) as Unary,
  extend_high_i8x16_s: vUn(0x88) as Unary,
};

/** Instructions on four f32 lanes. */
export const f32x4 = {
  const: (value: number): Code => {
    const b = f32Bytes(value);
    return new Code("v128", [...vec(0x0c), ...b, ...b, ...b, ...b]);
  },
  splat: un("v128", ...vec(0x13)) as Unary,
  extract_lane: lane("f32", 0x1f) as Lane,
  eq: vBin(0x41) as Binary,
  ne: vBin(0x42) as Binary,
  lt: vBin(0x43) as Binary,
  gt: vBin(0x44) as Binary,
  le: vBin(0x45) as Binary,
  ge: vBin(0x46) as Binary,
  ceil: vUn(0x67) as Unary,
  floor: vUn(0x68) as Unary,
  trunc: vUn(0x69) as Unary,
  nearest: vUn(0x6a) as Unary,
  abs: vUn(0xe0) as Unary,
  neg: vUn(0xe1) as Unary,
  sqrt: vUn(0xe3) as Unary,
  add: vBin(0xe4) as Binary,
  sub: vBin(0xe5) as Binary,
  mul: vBin(0xe6) as Binary,
  div: vBin(0xe7) as Binary,
  min: vBin(0xe8) as Binary,
  max: vBin(0xe9) as Binary,
  /** `b < a ? b : a`: a NaN in `b` gives `a`. */
  pmin: vBin(0xea) as Binary,
  /** `a < b ? b : a`: a NaN in `b` gives `a`. */
  pmax: vBin(0xeb) as Binary,
  convert_i32x4_s: vUn(0xfa) as Unary,
  convert_i32x4_u: vUn(0xfb) as Unary,
  demote_f64x2_zero: vUn(0x5e) as Unary,
  /** `a · b + c`, fused where the machine can. Only where relaxed SIMD validates. */
  relaxed_madd: vTri(0x105) as Ternary,
};

/** Instructions on two f64 lanes. */
export const f64x2 = {
  const: (value: number): Code => {
    const b = f64Bytes(value);
    return new Code("v128", [...vec(0x0c), ...b, ...b]);
  },
  promote_low_f32x4: vUn(0x5f) as Unary,
  convert_low_i32x4_s: vUn(0xfe) as Unary,
  convert_low_i32x4_u: vUn(0xff) as Unary,
  lt: vBin(0x49) as Binary,
  gt: vBin(0x4a) as Binary,
  trunc: vUn(0x7a) as Unary,
  nearest: vUn(0x94) as Unary,
  abs: vUn(0xec) as Unary,
  add: vBin(0xf0) as Binary,
  sub: vBin(0xf1) as Binary,
  mul: vBin(0xf2) as Binary,
  div: vBin(0xf3) as Binary,
  pmin: vBin(0xf6) as Binary,
  pmax: vBin(0xf7) as Binary,
};

/** Instructions on two i64 lanes. */
export const i64x2 = {
  /** Both lanes hold the 64 bits `high · 2^32 + low`. */
  const: (high: number, low: number): Code =>
    new Code("v128", [
      ...vec(0x0c),
      ...u32Bytes(low),
      ...u32Bytes(high),
      ...u32Bytes(low),
      ...u32Bytes(high),
    ]),
  shl: vShift(0xcb) as Shift,
  shr_u: vShift(0xcd) as Shift,
  add: vBin(0xce) as Binary,
  sub: vBin(0xd1) as Binary,
};

const atomicLoad = (type: ValueType, align: number, op: number): Load => (address, offset = 0) =>
  new Code(type, [...int(address).bytes, 0xfe, op, align, ...unsigned(offset)]);

/** Atomic instructions; addresses are naturally aligned. */
export const atomic = {
  load: atomicLoad("i32", 2, 0x10) as Load,
  load64: atomicLoad("i64", 3, 0x11) as Load,
  /** Adds; the old value. */
  add: (address: Int, value: Int, offset: number = 0): Code =>
    new Code("i32", [
      ...int(address).bytes,
      ...int(value).bytes,
      0xfe,
      0x1e,
      2,
      ...unsigned(offset),
    ]),
  /** Stores `next` if the value is `expected`; the old value. */
  exchange64: (address: Int, expected: Code, next: Code, offset: number = 0): Code =>
    new Code("i64", [
      ...int(address).bytes,
      ...expected.bytes,
      ...next.bytes,
      0xfe,
      0x49,
      3,
      ...unsigned(offset),
    ]),
  /** Sleeps while the value is `expected`, at most so many nanoseconds. */
  wait: (address: Int, expected: Int, nanoseconds: number, offset: number = 0): Code =>
    new Code("i32", [
      ...int(address).bytes,
      ...int(expected).bytes,
      ...i64.const(nanoseconds).bytes,
      0xfe,
      0x01,
      2,
      ...unsigned(offset),
    ]),
  /** Wakes waiting threads; how many there were. */
  notify: (address: Int, count: Int, offset: number = 0): Code =>
    new Code("i32", [
      ...int(address).bytes,
      ...int(count).bytes,
      0xfe,
      0x00,
      2,
      ...unsigned(offset),
    ]),
};

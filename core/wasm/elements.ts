/**
 * Loading and storing elements of any dtype as vectors of their register type: 16-bit floats widen
 * when loaded and round to nearest even when stored, a bool is a mask of all ones or zeros.
 *
 * @module
 */

import { bytesOf, type DType } from "../dtype.ts";
import { type Code, f32x4, i32x4, type Int, v128 } from "./code.ts";
import type { Func } from "./func.ts";

/** A mask of the first `count` lanes. */
export function firstLanes(f: Func, count: number): Code {
  return f.hoist(i32x4.const(...[0, 1, 2, 3].map((lane) => lane < count ? -1 : 0)));
}

/** Loads four elements that lie side by side. */
export function loadVector(f: Func, dtype: DType, address: Int, offset: number = 0): Code {
  const raw = bytesOf(dtype) === 2 ? v128.load16x4_u(address, offset) : v128.load(address, offset);
  return widen(f, dtype, raw);
}

/** Loads one element into all lanes. */
export function loadSplat(f: Func, dtype: DType, address: Int, offset: number = 0): Code {
  if (bytesOf(dtype) === 4) return widen(f, dtype, v128.load32_splat(address, offset));
  const zero = f.hoist(v128.zero());
  const one = f.let(v128.load16_lane(address, zero, 0, offset));
  return widen(f, dtype, v128.shuffle(one, one, [0, 0, 0, 0]));
}

/** Loads four elements from addresses of their own. */
export function loadLanes(f: Func, dtype: DType, addresses: readonly Int[]): Code {
  const raw = f.let(
    bytesOf(dtype) === 2
      ? v128.load16_lane(addresses[0], f.hoist(v128.zero()), 0)
      : v128.load32_zero(addresses[0]),
  );
  for (let i = 1; i < 4; i++) {
    f.set(
      raw,
      bytesOf(dtype) === 2
        ? v128.load16_lane(addresses[i], raw, 2 * i)
        : v128.load32_lane(addresses[i], raw, i),
    );
  }
  return widen(f, dtype, raw);
}

/** Brings 32-bit lanes with an element's bits to its register type. */
function widen(f: Func, dtype: DType, raw: Code): Code {
  switch (dtype) {
    case "bool":
      return i32x4.ne(raw, f.hoist(v128.zero()));
    case "bf16":
      return i32x4.shl(raw, 16);
    case "f16": {
      const half = f.let(raw);
      const size = f.let(i32x4.shl(v128.and(half, f.hoist(i32x4.const(0x7fff))), 13));
      const sign = i32x4.shl(v128.and(half, f.hoist(i32x4.const(0x8000))), 16);
      // Scaling by 2^112 moves the exponent's bias, and makes subnormals right.
      const scaled = f32x4.mul(size, f.hoist(f32x4.const(2 ** 112)));
      const special = v128.and(
        i32x4.ge_u(size, f.hoist(i32x4.const(0x0f800000))),
        f.hoist(i32x4.const(0x7f800000)),
      );
      return f.let(v128.or(v128.or(scaled, special), sign));
    }
    default:
      return raw;
  }
}

/** Brings a register's lanes to an element's bits, in 32-bit lanes. */
function narrow(f: Func, dtype: DType, value: Code): Code {
  switch (dtype) {
    case "bool":
      return v128.and(value, f.hoist(i32x4.const(1)));
    case "bf16": {
      const bits = f.let(value);
      const odd = v128.and(i32x4.shr_u(bits, 16), f.hoist(i32x4.const(1)));
      const rounded = i32x4.add(i32x4.add(bits, f.hoist(i32x4.const(0x7fff))), odd);
      const quiet = v128.or(bits, f.hoist(i32x4.const(0x00400000)));
      const nan = f32x4.ne(bits, bits);
      return f.let(i32x4.shr_u(v128.bitselect(quiet, rounded, nan), 16));
    }
    case "f16": {
      const bits = f.let(value);
      const size = f.let(v128.and(bits, f.hoist(i32x4.const(0x7fffffff))));
      const odd = v128.and(i32x4.shr_u(size, 13), f.hoist(i32x4.const(1)));
      // Moves the bias from 127 to 15 and rounds the 13 bits that are dropped.
      const bias = f.hoist(i32x4.const(((15 - 127) << 23) + 0xfff));
      const half = f.let(i32x4.shr_u(i32x4.add(i32x4.add(size, bias), odd), 13));
      // Below 2^-14: adding 1/2 rounds at the weight of the last subnormal bit.
      const magic = f.hoist(f32x4.const(0.5));
      const subnormal = i32x4.sub(f32x4.add(size, magic), magic);
      const low = i32x4.lt_u(size, f.hoist(i32x4.const(0x38800000)));
      f.set(half, v128.bitselect(subnormal, half, low));
      const large = i32x4.ge_u(size, f.hoist(i32x4.const(0x47800000)));
      const nan = i32x4.gt_u(size, f.hoist(i32x4.const(0x7f800000)));
      const special = v128.or(
        f.hoist(i32x4.const(0x7c00)),
        v128.and(nan, f.hoist(i32x4.const(0x0200))),
      );
      f.set(half, v128.bitselect(special, half, large));
      const sign = i32x4.shr_u(v128.and(bits, f.hoist(i32x4.const(0x80000000 | 0))), 16);
      return f.let(v128.or(half, sign));
    }
    default:
      return value;
  }
}

/** Stores four elements side by side. */
export function storeVector(
  f: Func,
  dtype: DType,
  address: Int,
  value: Code,
  offset: number = 0,
): void {
  const bits = narrow(f, dtype, value);
  if (bytesOf(dtype) === 4) return f.store(address, bits, offset);
  f.storeLane(64, address, i32x4.narrow_u(bits, bits), 0, offset);
}

/** Stores lane i at `addresses[i]`, where an address is given. */
export function storeLanes(
  f: Func,
  dtype: DType,
  addresses: readonly (Int | null)[],
  value: Code,
): void {
  const bits = f.let(narrow(f, dtype, value));
  addresses.forEach((address, i) => {
    if (address === null) return;
    if (bytesOf(dtype) === 4) f.storeLane(32, address, bits, i);
    else f.storeLane(16, address, bits, 2 * i);
  });
}

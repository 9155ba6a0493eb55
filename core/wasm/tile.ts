/**
 * Register tiles of matrix products: a few rows by a few vectors of columns, held in registers while
 * the depth runs by.
 *
 * @module
 */

import type { DType } from "../dtype.ts";
import { add, type Code, f32x4, i32, type Int, int, type Local, v128 } from "./code.ts";
import { firstLanes, loadVector } from "./elements.ts";
import type { Func } from "./func.ts";
import type { Vectors } from "./vectors.ts";

/**
 * Rows of the largest tile, whose columns the target tells: 10 accumulators keep the multiply-adds busy,
 * and leave registers for two vectors of `b`, one of `a` and one lane of it spread out. A sixth row
 * would spill.
 */
export const TILE: {
  readonly rows: number;
  /** Rows where each lies along the depth: a vector of each is held for four steps. */
  readonly along: number;
} = { rows: 5, along: 4 };

/** A tile of c = a · b, or c += a · b. Strides are in bytes. */
export interface Tile {
  readonly rows: number;
  /** Columns; where no multiple of 4, the last vector of `b` is read whole. */
  readonly columns: number;
  /** From one row of `a` to the next, and from one step of depth to the next. */
  readonly aRow: number;
  readonly aDepth: number;
  /** From one step of depth to the next; columns lie side by side. */
  readonly bDepth: number;
  /** From one row of `c` to the next; columns lie side by side. */
  readonly cRow: number;
  /** What `b` holds; default f32. `a` and `c` are f32. */
  readonly bType?: DType;
}

/**
 * Emits a tile of depth `depth` whose first elements are at `a`, `b` and `c`; where `accumulate` is
 * not zero, the product is added to `c`.
 */
export function emitTile(
  f: Func,
  vectors: Vectors,
  tile: Tile,
  a: Code,
  b: Code,
  c: Code,
  depth: Int,
  accumulate: Int,
): void {
  const { rows, columns } = tile;
  const wide = Math.ceil(columns / 4);
  const bytes = tile.bType === "f16" || tile.bType === "bf16" ? 2 : 4;
  const target = f.let(c);
  const sums: Local[][] = Array.from(
    { length: rows },
    () => Array.from({ length: wide }, () => f.local("v128")),
  );
  const each = (visit: (sum: Local, row: number, v: number) => void) =>
    sums.forEach((row, r) => row.forEach((sum, v) => visit(sum, r, v)));
  f.if(
    accumulate,
    () => each((sum, r, v) => f.set(sum, v128.load(target, r * tile.cRow + 16 * v))),
    () => each((sum) => f.set(sum, v128.zero())),
  );
  const pa = f.let(a);
  const pb = f.let(b);
  const right = Array.from({ length: wide }, () => f.local("v128"));
  // Rows side by side come in one load: V8 checks the bounds of each where it runs without its trap
  // handler, as in Deno, and the checks then take as long as the arithmetic.
  const together = tile.aRow === 4 ? rows - rows % 4 : 0;
  const along = together === 0 && tile.aDepth === 4 && rows <= TILE.along;
  const step = (k: number) => {
    right.forEach((x, v) => {
      const place = at(pb, k * tile.bDepth + 4 * bytes * v);
      f.set(x, loadVector(f, tile.bType ?? "f32", ...place));
    });
    let four: Local | null = null;
    for (let r = 0; r < rows; r++) {
      const place = at(pa, r * tile.aRow + k * tile.aDepth);
      if (r < together && r % 4 === 0) four = f.let(v128.load(...place));
      const lane = r % 4;
      const left = f.let(
        r < together
          ? v128.shuffle(four!, four!, [lane, lane, lane, lane])
          : v128.load32_splat(...place),
      );
      right.forEach((x, v) => f.set(sums[r][v], vectors.madd(left, x, sums[r][v])));
    }
  };
  const advance = (k: number) => {
    f.set(pa, add(pa, k * tile.aDepth));
    f.set(pb, add(pb, k * tile.bDepth));
  };
  /** Four steps of depth, which each row's vector holds. */
  const fourAlong = () => {
    const lines = Array.from(
      { length: rows },
      (_, r) => f.let(v128.load(...at(pa, r * tile.aRow))),
    );
    for (let k = 0; k < 4; k++) {
      right.forEach((x, v) => {
        const place = at(pb, k * tile.bDepth + 4 * bytes * v);
        f.set(x, loadVector(f, tile.bType ?? "f32", ...place));
      });
      lines.forEach((line, r) => {
        const left = f.let(v128.shuffle(line, line, [k, k, k, k]));
        right.forEach((x, v) => f.set(sums[r][v], vectors.madd(left, x, sums[r][v])));
      });
    }
  };
  const UNROLL = 4;
  const left = f.let(depth);
  f.if(i32.ge_s(left, UNROLL), () => {
    f.repeat(() => {
      if (along) fourAlong();
      else for (let k = 0; k < UNROLL; k++) step(k);
      advance(UNROLL);
      f.set(left, add(left, -UNROLL));
      return i32.ge_s(left, UNROLL);
    });
  });
  const { constant } = int(depth);
  if (constant === null || constant % UNROLL !== 0) {
    f.if(left, () => {
      f.repeat(() => {
        step(0);
        advance(1);
        f.set(left, add(left, -1));
        return left;
      });
    });
  }
  each((sum, r, v) => storeColumns(f, target, sum, columns - 4 * v, r * tile.cRow + 16 * v));
}

/** An address and an offset, which an instruction cannot take negative. */
function at(base: Code, offset: number): [Code, number] {
  return offset < 0 ? [add(base, offset), 0] : [base, offset];
}

/** Stores the first `columns` lanes of a vector; all if there are four or more. */
export function storeColumns(
  f: Func,
  address: Code,
  value: Local,
  columns: number,
  offset: number,
): void {
  if (columns >= 4) return f.store(address, value, offset);
  for (let i = 0; i < columns; i++) f.storeLane(32, address, value, i, offset + 4 * i);
}

/** Rows of `a` and of `b` multiplied with each other: c[i, j] = Σ a[i, k] · b[j, k]. */
export interface DotTile {
  readonly rows: number;
  /** Rows of `b`, at most 4. */
  readonly columns: number;
  /** Bytes from one row to the next. */
  readonly aRow: number;
  readonly bRow: number;
  readonly cRow: number;
  readonly aType: DType;
  readonly bType: DType;
  /** Elements of a row, which lie side by side. */
  readonly depth: number;
}

/** Emits a tile of dot products. */
export function emitDotTile(
  f: Func,
  vectors: Vectors,
  tile: DotTile,
  a: Code,
  b: Code,
  c: Code,
): void {
  const { rows, columns, depth } = tile;
  const aBytes = tile.aType === "f16" || tile.aType === "bf16" ? 2 : 4;
  const bBytes = tile.bType === "f16" || tile.bType === "bf16" ? 2 : 4;
  // A single row reads each row of `b` from end to end, as memory is read fastest, and keeps several
  // sums to have enough of them under way. More rows share what is loaded of several rows of `b`.
  const ways = rows === 1 ? 4 : 1;
  const together = rows === 1 ? 1 : columns;
  const sums: Local[][] = Array.from({ length: rows }, () => []);
  for (let first = 0; first < columns; first += together) {
    const parts = Array.from({ length: rows * together * ways }, () => f.let(v128.zero()));
    const pa = f.let(a);
    const pb = f.let(first === 0 ? b : add(b, first * tile.bRow));
    const step = (way: number, mask: Code | null) => {
      const only = (x: Code) => mask ? v128.and(x, mask) : x;
      const left = Array.from(
        { length: rows },
        (_, r) =>
          f.let(only(loadVector(f, tile.aType, ...at(pa, r * tile.aRow + 4 * way * aBytes)))),
      );
      for (let j = 0; j < together; j++) {
        const right = f.let(
          only(loadVector(f, tile.bType, ...at(pb, j * tile.bRow + 4 * way * bBytes))),
        );
        left.forEach((x, r) => {
          const sum = parts[(r * together + j) * ways + way];
          f.set(sum, vectors.madd(x, right, sum));
        });
      }
    };
    const loops = (n: number, width: number) => {
      const count = Math.floor(n / (4 * width));
      if (count > 0) {
        f.for(0, count, 1, () => {
          for (let way = 0; way < width; way++) step(way, null);
          f.set(pa, add(pa, 4 * width * aBytes));
          f.set(pb, add(pb, 4 * width * bBytes));
        });
      }
      return n - count * 4 * width;
    };
    let rest = loops(depth, ways);
    if (ways > 1) rest = loops(rest, 1);
    if (rest > 0) {
      step(0, firstLanes(f, rest));
    }
    for (let r = 0; r < rows; r++) {
      for (let j = 0; j < together; j++) {
        const own = parts.slice((r * together + j) * ways, (r * together + j + 1) * ways);
        sums[r].push(f.let(own.reduce<Code>((x, y) => f32x4.add(x, y), own.shift()!)));
      }
    }
  }
  const target = f.let(c);
  const zero = f.hoist(v128.zero());
  sums.forEach((own, r) =>
    storeColumns(
      f,
      target,
      f.let(addLanes(f, [0, 1, 2, 3].map((j) => own[j] ?? zero))),
      columns,
      r * tile.cRow,
    )
  );
}

/** A vector of the sums of the lanes of each of four vectors. */
export function addLanes(f: Func, four: readonly Code[]): Code {
  const [a, b, c, d] = four;
  const pair = (x: Code, y: Code) =>
    f.let(f32x4.add(v128.shuffle(x, y, [0, 4, 1, 5]), v128.shuffle(x, y, [2, 6, 3, 7])));
  const ab = pair(a, b);
  const cd = pair(c, d);
  return f32x4.add(v128.shuffle(ab, cd, [0, 1, 4, 5]), v128.shuffle(ab, cd, [2, 3, 6, 7]));
}

/** Four vectors as the columns they were rows of. */
export function transpose(f: Func, rows: readonly Code[]): Local[] {
  const [a, b, c, d] = rows;
  const low = f.let(v128.shuffle(a, b, [0, 4, 1, 5]));
  const high = f.let(v128.shuffle(a, b, [2, 6, 3, 7]));
  const low2 = f.let(v128.shuffle(c, d, [0, 4, 1, 5]));
  const high2 = f.let(v128.shuffle(c, d, [2, 6, 3, 7]));
  return [
    f.let(v128.shuffle(low, low2, [0, 1, 4, 5])),
    f.let(v128.shuffle(low, low2, [2, 3, 6, 7])),
    f.let(v128.shuffle(high, high2, [0, 1, 4, 5])),
    f.let(v128.shuffle(high, high2, [2, 3, 6, 7])),
  ];
}

/**
 * Calls `emit` for tiles of `tallest` rows while there are so many of `count`, then for smaller ones:
 * powers of two. `row` is the first row's number; the first of all is `from`.
 */
export function eachTile(
  f: Func,
  count: Int,
  tallest: number,
  emit: (row: Local, rows: number) => void,
  from: Int = 0,
): void {
  const row = f.let(from);
  const constant = from === 0 ? int(count).constant : null;
  let left = constant;
  let rows = tallest;
  while (rows >= 1) {
    const size = rows;
    if (left === null) f.upTo(row, add(count, 1 - size), size, () => emit(row, size));
    else if (left >= size) {
      f.upTo(row, constant! - left + Math.floor(left / size) * size, size, () => emit(row, size));
      left %= size;
    }
    rows = rows > 4 ? 4 : rows >> 1;
    if (left === 0) break;
  }
}

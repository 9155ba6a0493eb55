/**
 * What attention's passes on the cpu share: the layout of a call, panels of keys and values, and the
 * scores of a block of queries. A block's scores stand whole in a thread's scratch.
 *
 * @module
 */

import type { CallKernel, Operand } from "../../kernel.ts";
import {
  add,
  choose,
  type Code,
  eachTile,
  emitPack,
  emitTile,
  i32,
  i32x4,
  type Int,
  type KernelFunc,
  least,
  loadLanes,
  loadSplat,
  loadVector,
  type Local,
  most,
  mul,
  parts,
  TILE,
  v128,
  type WasmStage,
  type WasmTarget,
} from "../../wasm.ts";

/** Bytes of scores a thread works on at a time, so that they stay in the second-level cache. */
const SCORES = 1 << 18;
/** Most queries of a block: a multiple of a tile's rows. */
const QUERIES = 40;

/** A call of attention or of its gradient. */
export interface Layout {
  readonly batches: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly queries: number;
  readonly keys: number;
  readonly depth: number;
  readonly causal: boolean;
  readonly window: number;
  readonly scale: number;
  readonly q: Operand;
  readonly k: Operand;
  readonly v: Operand;
  readonly mask: Operand | null;
  /** Queries of a block. */
  readonly block: number;
  readonly blocks: number;
  /** Keys of a packed panel: a tile's columns. */
  readonly panel: number;
  /** Keys in whole panels. */
  readonly padded: number;
  /** From the scores of one query to those of the next in scratch, in elements. */
  readonly line: number;
}

/** Reads the layout of a call that holds `buffers` arrays of scores at once. */
export function layoutOf(call: CallKernel, buffers: number, target: WasmTarget): Layout {
  const [q, k, v] = call.inputs;
  const [batches, heads, queries, depth] = q.shape;
  const keys = k.shape[2];
  const panel = target.columns;
  const padded = Math.max(panel, parts(keys, panel) * panel);
  // Lines a power of two apart would fall on the same few places of the cache.
  const line = padded % 64 === 0 ? padded + 16 : padded;
  const fit = Math.floor(SCORES / (4 * line * buffers) / TILE.rows) * TILE.rows;
  const block = Math.min(Math.max(TILE.rows, Math.min(QUERIES, fit)), Math.max(1, queries));
  return {
    batches,
    heads,
    kvHeads: k.shape[1],
    queries,
    keys,
    depth,
    panel,
    causal: call.attrs.causal === true,
    window: Number(call.attrs.window),
    scale: Number(call.attrs.scale),
    q,
    k,
    v,
    mask: call.attrs.masked === true ? call.inputs[3] : null,
    block,
    blocks: parts(queries, block),
    padded,
    line,
  };
}

/** Address of row `row` of an operand [B, H, T, D]. */
export function rowOf(base: Code, o: Operand, b: Code, h: Code, row: Int): Code {
  const [sb, sh, st] = o.strides;
  return add(base, mul(add(mul(b, sb), mul(h, sh), mul(row, st), o.offset), 4));
}

/** How many keys take part: the call's scalar, within what there is. */
export function keyCount(f: KernelFunc, layout: Layout): Local {
  return f.let(most(f.let(least(f.scalar(0), layout.keys)), 0));
}

/** The keys that queries `first` to `last` may see: from the first one's to the last one's. */
export function keyRange(
  f: KernelFunc,
  { causal, window, queries }: Layout,
  keys: Local,
  first: Int,
  last: Int,
): { low: Local; high: Local } {
  const position = (row: Int) => add(keys, -queries, row);
  const high = causal || window > 0
    ? most(f.let(least(f.let(add(position(last), 1)), keys)), 0)
    : keys;
  const low = window > 0 ? most(f.let(add(position(first), 1 - window)), 0) : i32.const(0);
  return { low: f.let(low), high: f.let(high) };
}

/** Bytes of the panels of one operand, all heads. */
export function panelBytes({ batches, kvHeads, padded, depth }: Layout): number {
  return 4 * batches * kvHeads * padded * depth;
}

/** Address of the panels of a head. */
export function panelsOf(f: KernelFunc, layout: Layout, which: number, head: Code): Code {
  return add(
    f.workspace(),
    which * panelBytes(layout),
    mul(head, 4 * layout.padded * layout.depth),
  );
}

/** Packs keys (and values): panels [depth, columns of a tile] that a tile of scores takes as its right side. */
export function packStage(layout: Layout, operands: readonly number[]): WasmStage {
  const { batches, kvHeads, keys, depth, panel: width, padded } = layout;
  const panels = padded / width;
  const each = Math.max(1, Math.min(panels, Math.floor(32768 / (32 * depth))));
  const blocks = parts(panels, each);
  return {
    units: operands.length * batches * kvHeads * blocks,
    cost: operands.length * batches * kvHeads * padded * depth * 0.7,
    build: (f) => {
      const block = f.let(i32.rem_u(f.unit, blocks));
      const rest = f.let(i32.div_u(f.unit, blocks));
      const head = f.let(i32.rem_u(rest, batches * kvHeads));
      const which = f.let(i32.div_u(rest, batches * kvHeads));
      const b = f.let(i32.div_u(head, kvHeads));
      const h = f.let(i32.rem_u(head, kvHeads));
      const count = keyCount(f, layout);
      const first = f.let(mul(block, each));
      const end = f.let(
        least(f.let(add(first, each)), f.let(i32.div_u(add(count, width - 1), width))),
      );
      operands.forEach((input, i) => {
        const operand = i === 0 ? layout.k : layout.v;
        f.if(i32.eq(which, i), () => {
          const base = panelsOf(f, layout, i, head);
          const panel = f.let(first);
          f.upTo(panel, end, 1, () => {
            const row = f.let(mul(panel, width));
            const source = { dtype: operand.dtype, across: operand.strides[2], deep: 1 };
            emitPack(
              f,
              source,
              width,
              rowOf(f.input(input), operand, b, h, row),
              add(base, mul(panel, 4 * width * depth)),
              depth,
              f.let(least(i32.sub(keys, row), width)),
            );
          });
        });
      });
    },
  };
}

/**
 * Products of `rows` rows at `left` (`stride` bytes apart) with the panels of keys from `low`, a
 * multiple of a panel's keys, to `high`, into scratch at `to`. Row 0 stands at `position`; of a causal call, tiles
 * whose rows all stand before a panel's keys are left out.
 */
export function emitScores(
  f: KernelFunc,
  layout: Layout,
  left: Code,
  stride: number,
  rows: Int,
  position: Local,
  panels: Code,
  low: Code,
  high: Code,
  to: Code,
): void {
  const { depth, panel, line } = layout;
  const key = f.let(low);
  f.upTo(key, high, panel, () => {
    const b = f.let(add(panels, mul(key, 4 * depth)));
    const c = f.let(add(to, mul(i32.sub(key, low), 4)));
    const seen = looksBack(layout) ? f.let(most(f.let(i32.sub(key, position)), 0)) : null;
    const emit = (row: Local, height: number) => {
      emitTile(
        f,
        f.vectors,
        {
          rows: height,
          columns: panel,
          aRow: stride,
          aDepth: 4,
          bDepth: 4 * panel,
          cRow: 4 * line,
        },
        add(left, mul(row, stride)),
        b,
        add(c, mul(row, 4 * line)),
        depth,
        0,
      );
    };
    eachTile(f, rows, TILE.along, emit, seen ? f.let(i32.and(seen, -TILE.along)) : 0);
  });
}

/** Whether a query sees no key behind its own place. */
export function looksBack({ causal, window }: Layout): boolean {
  return causal || window > 0;
}

/**
 * How many of the keys before `high` the rows of the tile that holds row `row` see, where row 0 stands
 * at `position`; `more` keys on top.
 */
export function seenBy(
  f: KernelFunc,
  layout: Layout,
  position: Local,
  high: Local,
  row: Code,
  more = 0,
): Local {
  if (!looksBack(layout)) return high;
  const last = i32.or(row, TILE.along - 1);
  return f.let(most(f.let(least(f.let(add(position, last, 1 + more)), high)), 0));
}

/** A product whose right side is rows of `columns` elements side by side. */
export interface RowProduct {
  readonly rows: Int;
  readonly columns: number;
  readonly depth: Int;
  readonly a: Code;
  readonly aRow: number;
  readonly aDepth: number;
  readonly b: Code;
  readonly bDepth: number;
  readonly c: Code;
  readonly cRow: number;
  readonly accumulate: boolean;
  /** The part of the depth that the tile of `height` rows from `row` on takes; default: all of it. */
  readonly within?: (row: Local, height: number) => { readonly from?: Local; readonly to?: Local };
}

/** Emits tiles over all rows and columns. */
export function emitRowProduct(f: KernelFunc, p: RowProduct): void {
  const depth = f.let(most(p.depth, 0));
  const a = f.let(p.a);
  const b = f.let(p.b);
  const c = f.let(p.c);
  eachTile(f, p.rows, p.aDepth === 4 ? TILE.along : TILE.rows, (row, rows) => {
    const { from, to = depth } = p.within?.(row, rows) ?? {};
    const left = f.let(add(a, mul(row, p.aRow), from ? mul(from, p.aDepth) : 0));
    const right = from ? f.let(add(b, mul(from, p.bDepth))) : b;
    const steps = from ? f.let(i32.sub(to, from)) : to;
    const tile = (column: Int, columns: number) =>
      emitTile(
        f,
        f.vectors,
        {
          rows,
          columns,
          aRow: p.aRow,
          aDepth: p.aDepth,
          bDepth: p.bDepth,
          cRow: p.cRow,
        },
        left,
        add(right, mul(column, 4)),
        add(c, mul(row, p.cRow), mul(column, 4)),
        steps,
        p.accumulate ? 1 : 0,
      );
    const rest = p.columns % f.target.columns;
    f.for(0, p.columns - rest, f.target.columns, (column) => tile(column, f.target.columns));
    if (rest > 0) tile(p.columns - rest, rest);
  });
}

/** Which keys one query sees. */
export class Visible {
  readonly #f: KernelFunc;
  readonly #layout: Layout;
  readonly #low: Local;
  readonly #count: Local;
  readonly #mask: Local | null;

  /** For query `row` of head `h`, where its block sees keys from `low` to `high`. */
  constructor(
    f: KernelFunc,
    layout: Layout,
    keys: Local,
    low: Local,
    high: Local,
    place: { readonly b: Code; readonly h: Code; readonly row: Code },
  ) {
    this.#f = f;
    this.#layout = layout;
    const range = keyRange(f, layout, keys, place.row, place.row);
    const first = f.let(most(range.low, low));
    const end = f.let(least(range.high, high));
    this.#low = f.let(i32x4.splat(first));
    const count = choose(i32.gt_s(end, first), i32.sub(end, first), 0);
    this.#count = f.let(i32x4.splat(count));
    const { mask } = layout;
    this.#mask = mask && f.let(rowOf(f.input(3), mask, place.b, place.h, place.row));
  }

  /** A mask of keys `key` to `key + 3`. */
  lanes(key: Local): Code {
    const f = this.#f;
    const index = i32x4.add(i32x4.splat(key), f.hoist(i32x4.const(0, 1, 2, 3)));
    const inside = i32x4.lt_u(i32x4.sub(index, this.#low), this.#count);
    const { mask, keys } = this.#layout;
    if (!mask || !this.#mask) return inside;
    const stride = mask.strides[3];
    if (stride === 1) {
      return v128.and(inside, loadVector(f, "bool", add(this.#mask, mul(key, 4))));
    }
    if (stride === 0) return v128.and(inside, loadSplat(f, "bool", this.#mask));
    const places = [0, 1, 2, 3].map((j) =>
      add(this.#mask!, mul(f.let(least(add(key, j), keys - 1)), 4 * stride))
    );
    return v128.and(inside, loadLanes(f, "bool", places));
  }
}

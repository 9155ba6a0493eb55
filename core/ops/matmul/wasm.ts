/**
 * Matrix products on the cpu. Three ways: dot products where both operands lie along the depth and
 * there are few rows; tiles straight from the operands, also for few rows; and for the rest tiles over
 * packed panels, where b is packed once into the workspace and rows of a into each thread's scratch.
 *
 * @module
 */

import { bytesOf } from "../../dtype.ts";
import type { CallKernel } from "../../kernel.ts";
import {
  add,
  blockSize,
  type Code,
  eachTile,
  emitDotTile,
  emitPack,
  emitTile,
  i32,
  type Int,
  type KernelFunc,
  least,
  loadVector,
  type Local,
  mul,
  parts,
  storeColumns,
  TILE,
  v128,
  type WasmProgram,
  type WasmStage,
  type WasmTarget,
} from "../../wasm.ts";
import { type Batch, matrixOf, type Product } from "./product.ts";

/** Depth of a block: a panel of b of this depth stays in the first-level cache. */
const DEPTH = 384;
/** Rows and columns that one unit computes: few rows, so that no thread waits long for the last one. */
const ROWS = 30;
const COLUMNS = 512;
/** Units there should be at least, where the columns allow. */
const UNITS = 32;
/** Bytes of packed b at a time, of so many columns at least. */
const PACKED = 4 << 20;
/** Up to so many rows are multiplied without packing. */
const FEW = 8;
/** Floating-point operations of a nanosecond, roughly. */
const SPEED = 25;

/** The matrix product of two strided operands, with leading batch dimensions. */
export function matmulWasm(call: CallKernel, target: WasmTarget): WasmProgram {
  const p = matrixOf(call);
  const { m, n, k } = p;
  const empty = { stages: [], workspace: 0, scratch: 0 };
  if (m * n * p.batches === 0) return empty;
  if (k === 0) return { ...empty, stages: [zeros(p)] };
  if (m <= FEW && p.a.deep === 1 && p.b.deep === 1) {
    return { ...empty, stages: [dots(p)] };
  }
  const plain = p.a.dtype === "f32";
  if (m <= 4 && plain && p.b.across === 1) {
    return { ...empty, stages: [streams(p)] };
  }
  if (m <= FEW && plain && p.b.across === 1) {
    return { ...empty, stages: [straight(p, target)] };
  }
  return packed(p, target);
}

function zeros(p: Product): WasmStage {
  const bytes = 4 * p.batches * p.m * p.n;
  return { units: 1, cost: bytes / 20, build: (f) => f.zero(f.output(0), bytes) };
}

/** Where batch `batch` begins, for each operand. */
function batchOffsets(f: KernelFunc, batches: readonly Batch[], batch: Code): { a: Code; b: Code } {
  let rest = batch;
  const a: Code[] = [];
  const b: Code[] = [];
  for (const { n, a: sa, b: sb } of [...batches].reverse()) {
    const c = f.let(i32.rem_u(rest, n));
    rest = f.let(i32.div_u(rest, n));
    a.push(mul(c, sa));
    b.push(mul(c, sb));
  }
  return { a: f.let(add(0, ...a)), b: f.let(add(0, ...b)) };
}

/** Splits a number into digits, the last base first. */
function digits(f: KernelFunc, value: Code, bases: readonly number[]): Code[] {
  const out: Code[] = [];
  let rest = value;
  for (const n of [...bases].reverse()) {
    if (n === 1) {
      out.unshift(i32.const(0));
      continue;
    }
    out.unshift(f.let(i32.rem_u(rest, n)));
    rest = f.let(i32.div_u(rest, n));
  }
  return out;
}

/** Dot products of few rows of a with the columns of b: what generating one token at a time takes. */
function dots(p: Product): WasmStage {
  const { m, n, k, a, b } = p;
  const [aBytes, bBytes] = [bytesOf(a.dtype), bytesOf(b.dtype)];
  // A unit reads some 64 KiB of b.
  const each = Math.min(n, Math.max(4, Math.ceil((65536 / (k * bBytes)) / 4) * 4));
  const blocks = parts(n, each);
  const tall = Math.min(3, m);
  return {
    units: p.batches * blocks,
    // Either the arithmetic or the reading of b takes the time.
    cost: p.batches * n * k * Math.max(2 * m / SPEED, bBytes / 12),
    build: (f) => {
      const [batch, block] = digits(f, f.unit, [p.batches, blocks]);
      const at = batchOffsets(f, p.outer, batch);
      const first = f.let(mul(block, each));
      const end = f.let(least(add(first, each), n));
      const left = f.let(add(f.input(a.input), mul(add(at.a, a.offset), aBytes)));
      const right = f.let(add(f.input(b.input), mul(add(at.b, b.offset), bBytes)));
      const out = f.let(add(f.output(0), mul(batch, 4 * m * n)));
      const tiles = (column: Local, columns: number) =>
        eachTile(f, m, tall, (row, rows) => {
          emitDotTile(
            f,
            f.vectors,
            {
              rows,
              columns,
              aRow: a.across * aBytes,
              bRow: b.across * bBytes,
              cRow: 4 * n,
              aType: a.dtype,
              bType: b.dtype,
              depth: k,
            },
            add(left, mul(row, a.across * aBytes)),
            add(right, mul(column, b.across * bBytes)),
            add(out, mul(row, 4 * n), mul(column, 4)),
          );
        });
      f.upTo(first, add(end, -3), 4, () => tiles(first, 4));
      if (n % 4 !== 0) f.if(i32.lt_s(first, end), () => tiles(first, n % 4));
    },
  };
}

/**
 * Very few rows of a against rows of b as they lie in memory: some rows of b at a time are read side
 * by side from end to end, and added to the output.
 */
function streams(p: Product): WasmStage {
  const { m, n, k, a, b } = p;
  const bBytes = bytesOf(b.dtype);
  const each = Math.min(n, Math.max(256, Math.ceil(n / 32 / 64) * 64));
  const blocks = parts(n, each);
  return {
    units: p.batches * blocks,
    cost: p.batches * n * k * Math.max(2 * m / SPEED, bBytes / 12),
    build: (f) => {
      const [batch, block] = digits(f, f.unit, [p.batches, blocks]);
      const at = batchOffsets(f, p.outer, batch);
      const first = f.let(mul(block, each));
      const end = f.let(least(add(first, each), n));
      const left = f.let(add(f.input(a.input), mul(add(at.a, a.offset), 4)));
      const right = f.let(add(f.input(b.input), mul(add(at.b, b.offset), bBytes)));
      const out = f.let(add(f.output(0), mul(batch, 4 * m * n)));
      /** Adds \`deep\` steps of depth from \`depth\` on. */
      const steps = (depth: Local, deep: number) => {
        const factors = Array.from({ length: m * deep }, (_, i) => {
          const [row, d] = [Math.floor(i / deep), i % deep];
          const element = add(row * a.across, mul(add(depth, d), a.deep));
          return f.let(v128.load32_splat(add(left, mul(element, 4))));
        });
        const base = f.let(add(right, mul(mul(depth, b.deep), bBytes)));
        const columns = (column: Local, count: number) => {
          const from = f.let(add(base, mul(column, bBytes)));
          const to = f.let(add(out, mul(column, 4)));
          const rows = Array.from(
            { length: deep },
            (_, d) => f.let(loadVector(f, b.dtype, add(from, d * b.deep * bBytes))),
          );
          for (let row = 0; row < m; row++) {
            // The first steps have nothing to add to.
            const sum = f.let(v128.zero());
            f.if(depth, () => f.set(sum, v128.load(to, 4 * n * row)));
            rows.forEach((x, d) => f.set(sum, f.vectors.madd(factors[row * deep + d], x, sum)));
            storeColumns(f, to, sum, count, 4 * n * row);
          }
        };
        const column = f.let(first);
        f.upTo(column, add(end, -3), 4, () => columns(column, 4));
        if (n % 4 !== 0) f.if(i32.lt_s(column, end), () => columns(column, n % 4));
      };
      const deep = Math.max(2, Math.floor(8 / m));
      const depth = f.let(0);
      f.upTo(depth, k - deep + 1, deep, () => steps(depth, deep));
      if (k % deep !== 0) f.upTo(depth, k, 1, () => steps(depth, 1));
    },
  };
}

/** Tiles of few rows straight from the operands, where b's columns lie side by side. */
function straight(p: Product, target: WasmTarget): WasmStage {
  const { m, n, k, a, b } = p;
  const bBytes = bytesOf(b.dtype);
  const rows = Math.min(m, a.deep === 1 ? TILE.along : TILE.rows);
  const { columns } = target;
  const each = Math.max(columns, Math.ceil(65536 / (k * bBytes) / columns) * columns);
  const blocks = parts(n, each);
  return {
    units: p.batches * blocks,
    cost: p.batches * n * k * Math.max(2 * m / SPEED, bBytes / 12),
    build: (f) => {
      const [batch, block] = digits(f, f.unit, [p.batches, blocks]);
      const at = batchOffsets(f, p.outer, batch);
      const first = f.let(mul(block, each));
      const end = f.let(least(add(first, each), n));
      const left = f.let(add(f.input(a.input), mul(add(at.a, a.offset), 4)));
      const right = f.let(add(f.input(b.input), mul(add(at.b, b.offset), bBytes)));
      const out = f.let(add(f.output(0), mul(batch, 4 * m * n)));
      const tiles = (column: Local, width: number) =>
        eachTile(f, m, rows, (row, height) => {
          emitTile(
            f,
            f.vectors,
            {
              rows: height,
              columns: width,
              aRow: 4 * a.across,
              aDepth: 4 * a.deep,
              bDepth: bBytes * b.deep,
              cRow: 4 * n,
              bType: b.dtype,
            },
            add(left, mul(row, 4 * a.across)),
            add(right, mul(column, bBytes)),
            add(out, mul(row, 4 * n), mul(column, 4)),
            k,
            0,
          );
        });
      f.upTo(first, add(end, 1 - columns), columns, () => tiles(first, columns));
      if (n % columns >= 4 && columns > 4) {
        f.upTo(first, add(end, -3), 4, () => tiles(first, 4));
      }
      if (n % 4 !== 0) f.if(i32.lt_s(first, end), () => tiles(first, n % 4));
    },
  };
}

/** One panel of b to pack: up to a tile's columns of it, some steps deep. */
export interface Panel {
  /** Where b's matrix begins, in elements. */
  readonly base: Code;
  /** The first column. */
  readonly column: Code;
  /** The first step of depth; a multiple of 4. */
  readonly depth: Code;
  /** Steps of depth. */
  readonly count: Int;
  /** How many of the columns there are. */
  readonly valid: Int;
  /** Where the panel goes, as f32 [count, columns of a tile]. */
  readonly to: Code;
}

/** Emits the packing of a panel. */
export type PackPanel = (f: KernelFunc, panel: Panel) => void;

function stridedPanels({ b }: Product): PackPanel {
  return (f, { base, column, depth, count, valid, to }) => {
    const from = add(
      f.input(b.input),
      mul(add(base, b.offset, mul(column, b.across), mul(depth, b.deep)), bytesOf(b.dtype)),
    );
    emitPack(f, b, f.target.columns, from, to, count, valid);
  };
}

/**
 * Packs b, panel by panel, and multiplies tiles; in slices where b is large. `pack` says how, where b
 * is no plain operand.
 */
export function packed(
  p: Product,
  target: WasmTarget,
  pack: PackPanel = stridedPanels(p),
): WasmProgram {
  const { m, n, k, a } = p;
  const across = target.columns;
  const panels = parts(n, across);
  const deep = Math.ceil(parts(k, parts(k, DEPTH)) / 4) * 4;
  // A slice of b is some panels of some depth; deep products go on adding to what is there.
  const thinnest = 4 * across * Math.min(panels, COLUMNS / across);
  const depthEach = Math.min(k, Math.max(1, Math.floor(PACKED / thinnest / deep)) * deep);
  const depthSlices = parts(k, depthEach);
  const panelBytes = 4 * across * depthEach;
  // The batches that b has, which may be fewer than the product's.
  const own = p.outer.filter((d) => d.b !== 0);
  const matrices = own.reduce((x, d) => x * d.n, 1);
  const perBatch = own.length === p.outer.length;
  const slicePanels = Math.max(1, Math.min(panels, Math.floor(PACKED / panelBytes)));
  const room = Math.max(1, Math.floor(PACKED / (panelBytes * slicePanels)));
  const sliceMatrices = perBatch ? Math.min(matrices, room) : matrices;
  const panelSlices = parts(panels, slicePanels);
  const matrixSlices = parts(matrices, sliceMatrices);
  const slices = matrixSlices * panelSlices * depthSlices;
  const sliceBatches = perBatch ? sliceMatrices : p.batches;

  const packEach = Math.max(1, Math.min(slicePanels, Math.floor(65536 / panelBytes)));
  const packBlocks = parts(slicePanels, packEach);
  const packUnits = sliceMatrices * packBlocks;
  const packCost = n * k * matrices * 0.7 / slices;
  const sliced = [matrixSlices, panelSlices, depthSlices];
  const buildPack = (f: KernelFunc) => {
    const [slice, matrix, block] = digits(f, f.unit, [slices, sliceMatrices, packBlocks]);
    const [matrixSlice, panelSlice, depthSlice] = digits(f, slice, sliced);
    const batch = f.let(add(mul(matrixSlice, sliceMatrices), matrix));
    const depth = f.let(mul(depthSlice, depthEach));
    const count = f.let(blockSize(k, depthEach, depth));
    f.if(i32.ge_s(batch, matrices), () => f.return());
    const at = batchOffsets(f, own, batch);
    const first = f.let(mul(block, packEach));
    const start = f.let(mul(panelSlice, slicePanels));
    const end = f.let(
      least(f.let(least(add(first, packEach), slicePanels)), i32.sub(panels, start)),
    );
    f.upTo(first, end, 1, () => {
      const column = f.let(mul(add(start, first), across));
      const to = add(f.workspace(), mul(add(mul(matrix, slicePanels), first), panelBytes));
      const valid = blockSize(n, across, column);
      pack(f, { base: at.b, column, depth, count, valid, to });
    });
  };

  // Few columns do not repay packing a.
  const plain = a.dtype === "f32" && (n <= 32 || k <= 16);
  const tall = plain && a.deep === 1 ? TILE.along : TILE.rows;
  const rows = Math.min(m, ROWS);
  const rowBlocks = parts(m, rows);
  let wide = Math.min(slicePanels, COLUMNS / across);
  // Few rows: narrower units, so that no thread waits long for another's last one.
  while (wide > 8 && sliceBatches * rowBlocks * parts(slicePanels, wide) < UNITS) {
    wide = Math.ceil(wide / 2);
  }
  const columnBlocks = parts(slicePanels, wide);
  const units = sliceBatches * rowBlocks * columnBlocks;
  const cost = 2 * m * n * k * p.batches / SPEED / slices + m * n * p.batches / slices;
  const rowPanels = parts(rows, tall);
  const build = (f: KernelFunc) => {
    const [slice, inSlice, rowBlock, columnBlock] = digits(
      f,
      f.unit,
      [slices, sliceBatches, rowBlocks, columnBlocks],
    );
    const [matrixSlice, panelSlice, depthSlice] = digits(f, slice, sliced);
    const before = f.let(mul(depthSlice, depthEach));
    const batch = perBatch ? f.let(add(mul(matrixSlice, sliceMatrices), inSlice)) : inSlice;
    f.if(i32.ge_s(batch, p.batches), () => f.return());
    const at = batchOffsets(f, p.outer, batch);
    const matrix = perBatch ? inSlice : ownMatrix(f, p, batch);
    const firstRow = f.let(mul(rowBlock, rows));
    const rowCount = f.let(blockSize(m, rows, firstRow));
    const start = f.let(mul(panelSlice, slicePanels));
    const firstPanel = f.let(mul(columnBlock, wide));
    const endPanel = f.let(
      least(f.let(least(add(firstPanel, wide), slicePanels)), i32.sub(panels, start)),
    );
    const aBytes = bytesOf(a.dtype);
    const left = f.let(
      add(f.input(a.input), mul(add(at.a, a.offset, mul(firstRow, a.across)), aBytes)),
    );
    const right = f.let(add(f.workspace(), mul(matrix, slicePanels * panelBytes)));
    const out = f.let(add(f.output(0), mul(add(mul(batch, m), firstRow), 4 * n)));
    const depths = depthSlices === 1 ? k : f.let(blockSize(k, depthEach, before));
    f.for(0, depths, deep, (within) => {
      const depth = depthSlices === 1 ? within : f.let(add(before, within));
      const count = k <= deep ? i32.const(k) : f.let(blockSize(k, deep, depth));
      if (!plain) {
        f.for(0, rowCount, TILE.rows, (row) => {
          const from = add(left, mul(add(mul(row, a.across), mul(depth, a.deep)), aBytes));
          const to = add(f.scratch, mul(row, 4 * deep));
          emitPack(f, a, TILE.rows, from, to, count, i32.sub(rowCount, row));
        });
      }
      const tiles = (panel: Local, columns: number) => {
        const packedB = f.let(add(right, mul(panel, panelBytes), mul(within, 4 * across)));
        const c = f.let(add(out, mul(add(start, panel), 4 * across)));
        const tile = (row: Local, height: number) =>
          emitTile(
            f,
            f.vectors,
            {
              rows: height,
              columns,
              aRow: plain ? 4 * a.across : 4,
              aDepth: plain ? 4 * a.deep : 4 * TILE.rows,
              bDepth: 4 * across,
              cRow: 4 * n,
            },
            plain
              ? add(left, mul(row, 4 * a.across), mul(depth, 4 * a.deep))
              : add(f.scratch, mul(row, 4 * deep)),
            packedB,
            add(c, mul(row, 4 * n)),
            count,
            k <= deep ? 0 : depth,
          );
        // The last rows of a are in one panel: a tile of just so many.
        const row = f.let(0);
        f.upTo(row, add(rowCount, 1 - tall), tall, () => tile(row, tall));
        for (const rest of restsOf(m, rows, tall)) {
          f.if(i32.eq(i32.sub(rowCount, row), rest), () => tile(row, rest));
        }
      };
      const panel = f.let(firstPanel);
      const full = n % across === 0
        ? endPanel
        : f.let(least(endPanel, i32.sub(Math.floor(n / across), start)));
      f.upTo(panel, full, 1, () => tiles(panel, across));
      if (n % across !== 0) {
        f.if(i32.lt_s(panel, endPanel), () => tiles(panel, n % across));
      }
    });
  };
  const stages: WasmStage[] = [];
  for (let slice = 0; slice < slices; slice++) {
    stages.push({ units: packUnits, first: slice * packUnits, cost: packCost, build: buildPack });
    stages.push({ units, first: slice * units, cost, build });
  }
  return {
    stages,
    workspace: sliceMatrices * slicePanels * panelBytes,
    scratch: plain ? 0 : 4 * deep * TILE.rows * rowPanels,
  };
}

/** Which numbers of rows can be left after the tiles of `tall` rows of a block of `rows` of `m`. */
function restsOf(m: number, rows: number, tall: number): number[] {
  const rests = [rows, m % rows].map((n) => n % tall).filter((n) => n !== 0);
  return [...new Set(rests)];
}

/** The number of b's matrix in a batch of the product, where some dimensions do not move b. */
function ownMatrix(f: KernelFunc, p: Product, batch: Code): Code {
  const c = digits(f, batch, p.outer.map((d) => d.n));
  let number: Int = i32.const(0);
  p.outer.forEach((d, i) => {
    if (d.b !== 0) number = add(mul(number, d.n), c[i]);
  });
  return f.let(number);
}

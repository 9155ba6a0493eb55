/**
 * Products with a packed matrix in WGSL: the tiles of the plain product, whose loads of W decode.
 *
 * @module
 */

import type { CallKernel, Operand } from "../../kernel.ts";
import type { WgslModule, WgslProgram, WgslTarget } from "../../wgsl.ts";
import { type Packing, perWord } from "../dequantize.ts";
import { tiled } from "../matmul/wgsl.ts";
import { productOf } from "../matmul/wgsl_product.ts";
import { NF4 } from "../nf4.ts";

/** x [M, C] · Wᵀ, or where `turned` x [M, R] · W. */
export function quantizedMatmulWgsl(call: CallKernel, target: WgslTarget): WgslProgram {
  const w = call.attrs as unknown as Packing & { readonly turned: boolean };
  const { rows, columns, turned } = w;
  const [m, n] = call.outputs[0].shape;
  if (m * n === 0) return { passes: [], workspace: 0 };
  // W as it would lie if it were floats.
  const b: Operand = {
    dtype: "f32",
    shape: turned ? [rows, columns] : [columns, rows],
    strides: turned ? [columns, 1] : [1, columns],
    offset: 0,
  };
  const product = productOf({ ...call, inputs: [call.inputs[0], b] });
  const functions = (module: WgslModule, name: string): string =>
    sideFunctions(module, name, w, turned);
  return tiled({ ...product, b: { ...product.b, functions } }, call, target);
}

/** As the plain product's `sideFunctions`: `NAME_at` decodes one element, `NAME_vec` four of a row. */
function sideFunctions(module: WgslModule, name: string, w: Packing, turned: boolean): string {
  const words = module.bind({ kind: "input", index: 1 }, "u32");
  const scales = module.bind({ kind: "input", index: 2 }, "f32");
  const each = perWord(w.format);
  const [row, column] = turned ? ["i", "o"] : ["o", "i"];
  return `${w.format === "nf4" ? NF4_LEVELS : INT8_LEVELS}
fn ${name}_vec(line: i32, i: u32) -> vec4<f32> {
  let o = u32(line);
  let at = ${row} * ${w.columns}u + ${column};
  let scale = ${scales}[${row} * ${w.columns / w.block}u + ${column} / ${w.block}u];
  return levels(${words}[at / ${each}u] >> (${32 / each}u * (at % ${each}u))) * scale;
}
fn ${name}_at(line: i32, i: u32) -> f32 {
  let four = ${name}_vec(${turned ? "line & ~3, i" : "line, i & ~3u"});
  return four[${turned ? "line & 3" : "i & 3u"}];
}
fn ${name}_line(base: i32, o: u32) -> i32 { return i32(o); }
fn ${name}_base(batch: u32) -> i32 { return 0; }`;
}

/** What the four lowest codes of a word stand for. */
const INT8_LEVELS = `fn levels(word: u32) -> vec4<f32> {
  // Shifted up and down again, so that the sign spreads.
  let codes = (vec4<i32>(bitcast<i32>(word)) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u);
  return vec4<f32>(codes) * ${1 / 127};
}`;

/** A tree of choices by the codes' bits: tables in private memory are slow on many devices. */
const NF4_LEVELS = `fn levels(word: u32) -> vec4<f32> {
  let codes = vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u);
${
  [0, 1, 2, 3].map((bit) => `  let bit${bit} = (codes & vec4<u32>(${1 << bit}u)) != vec4<u32>();`)
    .join("\n")
}
  return ${nf4Tree(0, 3)};
}`;

/** The choice among the values from code `first` on by bits 0 to `bit`. */
function nf4Tree(first: number, bit: number): string {
  if (bit < 0) return `vec4<f32>(${NF4[first]})`;
  const [unset, set] = [first, first + (1 << bit)].map((code) => nf4Tree(code, bit - 1));
  return `select(${unset}, ${set}, bit${bit})`;
}

/**
 * Attention on a software device: an invocation holds one row in registers, with what it sums for that
 * row, and meets the other side's rows one at a time. No workgroup memory, no barriers.
 *
 * @module
 */

import type { CallKernel } from "../../kernel.ts";
import { dispatchOf, lanesOf, WgslModule, type WgslPass, type WgslTarget } from "../../wgsl.ts";
import {
  gradientInputs,
  maskFunctions,
  type Rows,
  rowsOf,
  type Sizes,
  sizesOf,
} from "./wgsl_blocks.ts";

/** The forward pass: q, k, v, (mask) → out, log-sum-exp. */
export function forwardRows(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth } = sizes;
  const module = new WgslModule(target, call.scalars);
  const [q, k, v] = ["q", "k", "v"].map((name, i) => rowsOf(module, call, i, name));
  const lse = module.array({ kind: "output", index: 1 }, "f32", "write");
  const text = new RowText(module, depth, queries, heads, batch);
  const code = `${[q, k, v].map((rows) => rows.code).join("\n")}
${maskFunctions(module, call, sizes)}
${text.start}
  let base_q = q_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  ${text.ownRow([q, "q"])}
  let first = first_key(row);
  let last = end_key(row);
  // The highest score so far, and the sum of exp(score - highest).
  var top = -1e30;
  var sum = 0.0;
  ${text.zeros("o")}
  let end = end_key(min(row0 + ${text.lanes - 1}, ${queries - 1}));
  for (var key = first_key(row0); key < end; key++) {
    let ok = ${takesPart(sizes, "h", "row", "key")};
    ${text.row(k, "key", "k")}
    ${text.dot("s", "q", "k")}
    let score = select(-1e30, s * ${sizes.scale}, ok);
    let next = max(top, score);
    // A masked pair weighs nothing even where all of its row is masked and the maximum is -1e30.
    let w = select(0.0, exp(score - next), ok);
    let shrink = exp(top - next);
    top = next;
    sum = sum * shrink + w;
    ${text.row(v, "key", "v")}
    ${text.each((i) => `o${i} = o${i} * shrink + w * v${i};`)}
  }
  if (line >= ${queries}) { return; }
  let part = select(0.0, 1.0 / sum, sum > 0.0);
  ${text.store(0, "o", "part")}
  var result = 0.0;
  if (sum > 0.0) { result = top + ${module.use("log_f32")}(sum); }
  ${lse.store(`u32((b * ${heads} + h) * ${queries} + row)`, "result")}
}`;
  return module.pass(code, text.groups, 4 * batch * heads * queries * keys * depth);
}

/** dq: q, k, v, (mask), dout, log-sum-exp, delta → dq. */
export function queryGradientRows(call: CallKernel, target: WgslTarget): WgslPass {
  const sizes = sizesOf(call);
  const { batch, heads, group, queries, keys, depth, scale } = sizes;
  const module = new WgslModule(target, call.scalars);
  const { q, k, v, dout, code: functions } = gradientInputs(module, call, sizes, true);
  const text = new RowText(module, depth, queries, heads, batch);
  const code = `${functions}
${text.start}
  let base_q = q_base(b, h);
  let base_dout = dout_base(b, h);
  let base_k = k_base(b, h / ${group});
  let base_v = v_base(b, h / ${group});
  ${text.ownRow([q, "q"], [dout, "d"])}
  let lse = lse_at(b, h, row);
  let delta = delta_at(b, h, row);
  let first = first_key(row);
  let last = end_key(row);
  ${text.zeros("g")}
  let end = end_key(min(row0 + ${text.lanes - 1}, ${queries - 1}));
  for (var key = first_key(row0); key < end; key++) {
    let ok = ${takesPart(sizes, "h", "row", "key")};
    ${text.row(k, "key", "k")}
    ${text.row(v, "key", "v")}
    ${text.dot("s", "q", "k")}
    ${text.dot("p", "d", "v")}
    let w = select(0.0, exp(s * ${scale} - lse) * (p - delta) * ${scale}, ok);
    ${text.each((i) => `g${i} += w * k${i};`)}
  }
  if (line >= ${queries}) { return; }
  ${text.store(0, "g")}
}`;
  return module.pass(code, text.groups, 6 * batch * heads * queries * keys * depth);
}

/** dk, dv or both, of the same inputs: the rows are keys, met by the queries of every head. */
export function keyGradientRows(
  call: CallKernel,
  target: WgslTarget,
  { dk, dv }: { dk: boolean; dv: boolean },
): WgslPass {
  const sizes = sizesOf(call);
  const { batch, keyHeads, group, queries, keys, depth, scale, causal, window } = sizes;
  const module = new WgslModule(target, call.scalars);
  const { q, k, v, dout, code: functions } = gradientInputs(module, call, sizes, dk);
  const text = new RowText(module, depth, keys, keyHeads, batch);
  const shift = `(${module.scalar(0)} - ${queries})`;
  const code = `${functions}
${text.start}
  let base_k = k_base(b, h);
  ${dk ? "let base_v = v_base(b, h);" : ""}
  ${dk ? text.ownRow([k, "k"], [v, "v"]) : text.ownRow([k, "k"])}
  ${dk ? text.zeros("gk") : ""}
  ${dv ? text.zeros("gv") : ""}
  // The queries that see some key of the workgroup.
  let first_query = ${causal ? `max(0, row0 - ${shift})` : "0"};
  var end_query = ${
    window > 0 ? `min(${queries}, row0 + ${text.lanes - 1 + window} - ${shift})` : `${queries}`
  };
  if (row0 >= limit()) { end_query = 0; }
  for (var head = h * ${group}; head < (h + 1) * ${group}; head++) {
    let base_q = q_base(b, head);
    let base_dout = dout_base(b, head);
    for (var query = first_query; query < end_query; query++) {
      let first = first_key(query);
      let last = end_key(query);
      let ok = ${takesPart(sizes, "head", "query", "row")};
      ${text.row(q, "query", "q")}
      ${text.row(dout, "query", "d")}
      ${text.dot("s", "k", "q")}
      let w = select(0.0, exp(s * ${scale} - lse_at(b, head, query)), ok);
      ${dv ? text.each((i) => `gv${i} += w * d${i};`) : ""}
      ${
    dk
      ? `${text.dot("p", "v", "d")}
      let ds = w * (p - delta_at(b, head, query)) * ${scale};
      ${text.each((i) => `gk${i} += ds * q${i};`)}`
      : ""
  }
    }
  }
  if (line >= ${keys}) { return; }
  ${dk ? text.store(1, "gk") : ""}
  ${dv ? text.store(2, "gv") : ""}
}`;
  const products = 2 + (dk ? 4 : 0) + (dv ? 2 : 0);
  return module.pass(
    code,
    text.groups,
    products * batch * keyHeads * group * queries * keys * depth,
  );
}

// Whether a pair in range takes part, where `first` and `last` are the ends of the query's keys.
function takesPart(sizes: Sizes, head: string, query: string, key: string): string {
  const allowed = sizes.masked ? ` & allowed(b, ${head}, ${query}, ${key})` : "";
  return `(${key} >= first) & (${key} < last)${allowed}`;
}

/** Text over rows of `depth`; vector i of the row NAME is the register NAMEi. */
class RowText {
  readonly groups: [number, number, number];
  /** Rows of a workgroup, one an invocation. */
  readonly lanes: number;
  /**
   * The function `vectors()`, how many hold a row, and the entry point's begin: b, h and the workgroup's
   * first row, row0; `line` is the invocation's row, and `row` the same or, past the end, the last one.
   */
  readonly start: string;
  readonly #module: WgslModule;
  readonly #depth: number;
  readonly #vectors: number;
  readonly #origin: string;

  constructor(module: WgslModule, depth: number, rows: number, heads: number, batch: number) {
    this.#module = module;
    this.#depth = depth;
    this.#vectors = Math.ceil(depth / 4);
    this.#origin = `(b * ${rows} + row) * ${heads} + h`;
    this.lanes = lanesOf(module.target);
    const tiles = Math.ceil(rows / this.lanes);
    const count = batch * heads * tiles;
    this.groups = dispatchOf(count, module.target);
    // At least one key takes part. A driver that knew the number would write out the loops up to it.
    this.start = `fn vectors() -> i32 { return select(0, ${this.#vectors}, ${
      module.scalar(0)
    } > 0); }
@compute @workgroup_size(${this.lanes})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let index = id.x + id.y * ${this.groups[0]}u;
  if (index >= ${count}u) { return; }
  let b = i32(index / ${heads * tiles}u);
  let h = i32((index / ${tiles}u) % ${heads}u);
  let row0 = i32(index % ${tiles}u) * ${this.lanes};
  let line = row0 + i32(lane);
  let row = min(line, ${rows - 1});`;
  }

  each(text: (i: number) => string): string {
    return Array.from({ length: this.#vectors }, (_, i) => text(i)).join("\n    ");
  }

  zeros(name: string): string {
    return this.each((i) => `var ${name}${i} = vec4<f32>();`);
  }

  /** Declares `name`, the product of two rows. */
  dot(name: string, a: string, b: string): string {
    return `var ${name}_4 = vec4<f32>();
    ${this.each((i) => `${name}_4 += ${a}${i} * ${b}${i};`)}
    let ${name} = (${name}_4.x + ${name}_4.y) + (${name}_4.z + ${name}_4.w);`;
  }

  /**
   * Declares the registers of a row of the other side and reads it. It is the same for all lanes, so
   * they share out its vectors where they can tell each other.
   */
  row(rows: Rows, at: string, name: string): string {
    const { lanes } = this;
    if (!this.#module.target.subgroup) {
      return this.each((i) => `let ${name}${i} = ${this.#vector(rows, at, `${4 * i}`)};`);
    }
    const loads = Array.from({ length: Math.ceil(this.#vectors / lanes) }, (_, g) => {
      const vector = `min(i32(lane) + ${g * lanes}, ${this.#vectors - 1})`;
      return `let ${name}_${g} = ${this.#vector(rows, at, `4 * ${vector}`)};`;
    });
    const own = (i: number): string => `${name}_${Math.floor(i / lanes)}`;
    return `${loads.join("\n    ")}
    ${this.each((i) => `let ${name}${i} = ${this.#module.broadcast(own(i), i % lanes)};`)}`;
  }

  /**
   * The same for own rows, which are read once: a load takes the driver as long to compile as dozens
   * of operations, so that a loop with one load sets one register a turn.
   */
  ownRow(...sides: readonly [rows: Rows, name: string][]): string {
    const set = (i: number): string =>
      sides.map(([, name], n) => `${name}${i} = select(${name}${i}, x${n}, i == ${i});`).join(" ");
    return `${sides.map(([, name]) => this.zeros(name)).join("\n  ")}
  for (var i = 0; i < vectors(); i++) {
    ${sides.map(([rows], n) => `let x${n} = ${this.#vector(rows, "row", "4 * i")};`).join("\n    ")}
    ${this.each(set)}
  }`;
  }

  // Four depths of a row from d on; past the depth they are 0.
  #vector({ name, vectors }: Rows, row: string, d: string): string {
    if (vectors) return `${name}_vec(base_${name}, ${row}, ${d})`;
    const depth = this.#depth;
    const parts = [0, 1, 2, 3].map((c) => {
      const at = depth % 4 === 0 ? `${d} + ${c}` : `min(${d} + ${c}, ${depth - 1})`;
      const value = `${name}_at(base_${name}, ${row}, ${at})`;
      return depth % 4 === 0 ? value : `select(0.0, ${value}, ${d} + ${c} < ${depth})`;
    });
    return `vec4<f32>(${parts.join(", ")})`;
  }

  /** Stores `from`, times a factor, as the own row of the contiguous output `index`. */
  store(index: number, from: string, factor = "1.0"): string {
    const depth = this.#depth;
    const whole = depth % 4 === 0;
    const source = { kind: "output", index } as const;
    const out = this.#module.bind(source, whole ? "vec4<f32>" : "f32", true);
    const origin = `(${this.#origin}) * ${whole ? this.#vectors : depth}`;
    const statement = whole
      ? `${out}[${origin} + i] = x;`
      : `for (var c = 0; c < min(4, ${depth} - 4 * i); c++) {
      ${out}[${origin} + 4 * i + c] = x[c];
    }`;
    return `for (var i = 0; i < vectors(); i++) {
    var x = vec4<f32>();
    ${this.each((i) => `x = select(x, ${from}${i} * ${factor}, i == ${i});`)}
    ${statement}
  }`;
  }
}

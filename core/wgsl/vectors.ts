/**
 * Pointwise loop kernels in steps of four elements: one invocation reads and writes whole vectors where
 * the last dimension lies together, and computes the four values one by one.
 *
 * @module
 */

import { bytesOf, type DType, registerOf } from "../dtype.ts";
import { accessesOf, type Expr, type Load, operationsOf } from "../expr.ts";
import type { LoopKernel, Write } from "../kernel.ts";
import { addressOf, boundText, emitExpr, literalOf } from "./expr.ts";
import { WgslModule } from "./module.ts";
import { type Aliases, resultOf, slotTerm, WgslInputs } from "./pointwise.ts";
import { dispatchOf, type WgslProgram, type WgslTarget } from "./program.ts";
import { coordinatesOf, countOf, type Space } from "./space.ts";

// Below this many elements one invocation each is faster: more of the device works.
const LEAST = 16384;

// The bodies stand four times in the code; beyond this many operations it takes long to compile.
const MOST_OPERATIONS = 48;

/** Four neighbours at a time of a bound array. */
class Vectors {
  readonly variable: string;
  readonly #module: WgslModule;
  readonly #bound: DType;

  constructor(module: WgslModule, variable: string, bound: DType) {
    this.#module = module;
    this.variable = variable;
    this.#bound = bound;
  }

  /** The elements from `address`, a multiple of four, on, as a vector of the register type. */
  load(address: string, dtype: DType): string {
    const at = `${this.variable}[u32(${address}) >> 2u]`;
    if (dtype === "f16") {
      return `vec4<f32>(unpack2x16float(${at}.x), unpack2x16float(${at}.y))`;
    }
    if (dtype === "bf16") {
      const high = "vec2<u32>(0xffff0000u)";
      return `bitcast<vec4<f32>>(vec4<u32>(${at} << vec2<u32>(16u), ${at} & ${high}).xzyw)`;
    }
    const raw = dtype === "bool" ? "u32" : dtype;
    const word = raw === wordOf(this.#bound) ? at : `bitcast<vec4<${raw}>>(${at})`;
    return dtype === "bool" ? `(${word} != vec4<u32>())` : word;
  }

  /** Stores four register values. */
  store(address: string, values: readonly string[]): string {
    const dtype = this.#bound;
    const at = `${this.variable}[u32(${address}) >> 2u]`;
    if (bytesOf(dtype) === 2) {
      const round = this.#module.use(dtype === "f16" ? "to_f16" : "to_bf16");
      const half = values.map((v) => `${round}(${v})`);
      return `${at} = vec2<u32>(${half[0]} | (${half[1]} << 16u), ${half[2]} | (${
        half[3]
      } << 16u));`;
    }
    const words = dtype === "bool" ? values.map((v) => `select(0u, 1u, ${v})`) : values;
    return `${at} = vec4<${wordOf(dtype)}>(${words.join(", ")});`;
  }
}

function wordOf(dtype: DType): string {
  return dtype === "bool" ? "u32" : registerOf(dtype);
}

function bindVectors(
  module: WgslModule,
  kind: "input" | "output",
  index: number,
  dtype: DType,
): Vectors {
  const type = bytesOf(dtype) === 2 ? "vec2<u32>" : `vec4<${wordOf(dtype)}>`;
  return new Vectors(module, module.bind({ kind, index }, type, kind === "output"), dtype);
}

const byFour = (n: number): boolean => n % 4 === 0;

function aligned(strides: readonly number[], offset: number, dim: number): boolean {
  return byFour(offset) && strides.every((s, d) => d === dim ? s === 1 : byFour(s));
}

/** The inputs that can be read four neighbours along dimension `dim` at a time, and the others. */
function wholeInputs(
  bodies: readonly Expr[],
  dim: number,
): { yes: ReadonlySet<number>; no: ReadonlySet<number> } {
  const yes = new Set<number>(), no = new Set<number>();
  for (const e of accessesOf(...bodies)) {
    const whole = e.kind === "load" && aligned(e.strides, e.offset, dim) &&
      e.bounds.every((b) => b.dim !== dim);
    (whole ? yes : no).add(e.input);
  }
  for (const i of no) yes.delete(i);
  return { yes, no };
}

/** Whether {@linkcode foursOf} has an answer that reads vectors. */
export function readsFours({ shape, bodies }: Space, dim: number): boolean {
  return byFour(shape[dim]) && operationsOf(...bodies) <= MOST_OPERATIONS &&
    wholeInputs(bodies, dim).yes.size > 0;
}

/** Four neighbours of a space, computed one by one from what is loaded in vectors. */
export interface Fours {
  /** The function that computes one. */
  readonly function: string;
  /** Statements that load, where `c0`, `c1`, … are the coordinates of the first. */
  readonly loads: string;
  /** The values of the four, each as {@linkcode resultOf} packs it. */
  readonly values: readonly string[];
}

/**
 * What computes four neighbours along dimension `dim` of `space`, whose size there is a multiple of
 * four; null where no input can be read so, or it would take long to compile. Inputs in `bound` have
 * memory already.
 */
export function foursOf(
  module: WgslModule,
  { shape, bodies }: Space,
  dim: number,
  dtypes: readonly DType[],
  bound: ReadonlyMap<number, Vectors> = new Map(),
): Fours | null {
  const { yes, no } = wholeInputs(bodies, dim);
  if (operationsOf(...bodies) > MOST_OPERATIONS || !byFour(shape[dim])) return null;
  // Outputs are bound in vectors, so what shares their memory must be read so.
  if ([...bound.keys()].some((i) => no.has(i))) return null;
  const inputs = new WgslInputs(module, dtypes);
  const vectors = new Map(bound);
  // What the four load as a vector, or alike, stands before their values, which get it as parameters.
  const loads: string[] = [], parameters: string[] = [];
  const values: ((k: number) => string)[] = [];
  const early = (e: Load): string | null => {
    const whole = yes.has(e.input);
    const alike = e.strides[dim] === 0 && e.bounds.every((b) => b.dim !== dim);
    if (!whole && !alike) return null;
    const [name, parameter] = [module.name("l"), module.name("p")];
    const coordinate = (d: number): string => `c${d}`;
    const address = addressOf(e.strides, e.offset, coordinate);
    let text: string;
    if (whole) {
      let vector = vectors.get(e.input);
      if (!vector) {
        vector = bindVectors(module, "input", e.input, dtypes[e.input]);
        vectors.set(e.input, vector);
      }
      text = vector.load(address, dtypes[e.input]);
    } else text = inputs.array(e.input).load(address);
    if (e.bounds.length === 0) loads.push(`let ${name} = ${text};`);
    else {
      const tests = e.bounds.map((b) => boundText(b, coordinate)).join(" && ");
      const zero = literalOf(module, e.type, 0);
      loads.push(`var ${name} = ${whole ? `vec4<${e.type}>(${zero})` : zero};
  if (${tests}) { ${name} = ${text}; }`);
    }
    parameters.push(`${parameter}: ${e.type}`);
    values.push((k) => whole ? `${name}.${"xyzw"[k]}` : name);
    return parameter;
  };
  const result = resultOf(bodies);
  const emitted = emitExpr(module, bodies, {
    coordinate: (d) => `c${d}`,
    array: (i) => inputs.array(i),
    load: early,
  });
  return {
    function: `fn element(${
      [...shape.map((_, d) => `c${d}: i32`), ...parameters].join(", ")
    }) -> ${result.type} {
  ${emitted.code}
  return ${result.pack(emitted.values)};
}`,
    loads: loads.join("\n  "),
    values: [0, 1, 2, 3].map((k) => {
      const coordinates = shape.map((_, d) => d === dim ? `c${d} + ${k}` : `c${d}`);
      return `element(${[...coordinates, ...values.map((value) => value(k))].join(", ")})`;
    }),
  };
}

/** The program of a pointwise kernel in steps of four, or null where that does not fit. */
export function vectorWgsl(
  kernel: LoopKernel,
  space: Space,
  aliases: Aliases,
  target: WgslTarget,
): WgslProgram | null {
  const { shape, bodies } = space;
  const write: Write = { ...kernel.write, strides: space.write };
  const last = shape.length - 1;
  if (countOf(shape) < LEAST || !aligned(write.strides, write.offset, last)) return null;
  if (write.slot !== undefined && !byFour(write.stride ?? 0)) return null;
  const module = new WgslModule(target, kernel.scalars);
  const outputs = bodies.map((_, k) => bindVectors(module, "output", k, kernel.output));
  const own = new Map(aliases.map(([i, output]) => [i, outputs[output]]));
  const fours = foursOf(module, space, last, kernel.inputs, own);
  if (!fours) return null;
  const result = resultOf(bodies);
  const place = addressOf(write.strides, write.offset, (d) => `c${d}`) + slotTerm(module, write);
  const count = countOf(shape);
  const points = count / 4;
  const size = Math.min(target.maxInvocations, target.software ? 64 : 256);
  const groups = dispatchOf(Math.ceil(points / size), target);
  const code = `${fours.function}
@compute @workgroup_size(${size})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x + id.y * ${module.parameter(groups[0] * size)};
  if (at >= ${module.parameter(points)}) { return; }
  let flat = at * 4u;
  ${coordinatesOf(shape, 0, shape.length, "flat")}
  ${fours.loads}
  let address = ${place};
  ${fours.values.map((v, k) => `let v_${k} = ${v};`).join("\n  ")}
  ${
    outputs.map((output, o) =>
      output.store("address", [0, 1, 2, 3].map((k) => result.part(`v_${k}`, o)))
    ).join("\n  ")
  }
}`;
  return { passes: [module.pass(code, groups, count * 4)], workspace: 0 };
}

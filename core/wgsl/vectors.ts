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

function aligned(strides: readonly number[], offset: number): boolean {
  return strides.at(-1) === 1 && byFour(offset) && strides.slice(0, -1).every(byFour);
}

/** The inputs that are read in vectors, or null where the kernel is not one for steps of four. */
function vectorInputs(
  space: Space,
  write: Write,
  aliases: Aliases,
  bodies: readonly Expr[],
): ReadonlySet<number> | null {
  const { shape } = space;
  const last = shape.length - 1;
  if (countOf(shape) < LEAST || !byFour(shape[last]) || !aligned(write.strides, write.offset)) {
    return null;
  }
  if (write.slot !== undefined && !byFour(write.stride ?? 0)) return null;
  if (operationsOf(...bodies) > MOST_OPERATIONS) return null;
  const yes = new Set<number>(), no = new Set<number>();
  for (const e of accessesOf(...bodies)) {
    const whole = e.kind === "load" && aligned(e.strides, e.offset) &&
      e.bounds.every((b) => b.dim !== last);
    (whole ? yes : no).add(e.input);
  }
  for (const i of no) yes.delete(i);
  // An output is bound in vectors, so what shares its memory must be read so.
  return aliases.every(([i]) => !no.has(i)) ? yes : null;
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
  const whole = vectorInputs(space, write, aliases, bodies);
  if (!whole) return null;
  const module = new WgslModule(target, kernel.scalars);
  const outputs = bodies.map((_, k) => bindVectors(module, "output", k, kernel.output));
  const inputs = new WgslInputs(module, kernel.inputs);
  const vectors = new Map(aliases.map(([i, output]) => [i, outputs[output]]));
  const rank = shape.length, last = rank - 1;

  // Vector loads stand before the four values; each value gets its component as a parameter.
  const loads: string[] = [], names: string[] = [], parameters: string[] = [];
  const vectorLoad = (e: Load): string | null => {
    if (!whole.has(e.input)) return null;
    let vector = vectors.get(e.input);
    if (!vector) {
      vector = bindVectors(module, "input", e.input, kernel.inputs[e.input]);
      vectors.set(e.input, vector);
    }
    const [name, parameter] = [module.name("l"), module.name("p")];
    const coordinate = (d: number): string => `c${d}`;
    const address = addressOf(e.strides, e.offset, coordinate);
    if (e.bounds.length === 0) {
      loads.push(`let ${name} = ${vector.load(address, kernel.inputs[e.input])};`);
    } else {
      const tests = e.bounds.map((b) => boundText(b, coordinate)).join(" && ");
      loads.push(`var ${name} = vec4<${e.type}>(${literalOf(module, e.type, 0)});
  if (${tests}) { ${name} = ${vector.load(address, kernel.inputs[e.input])}; }`);
    }
    names.push(name);
    parameters.push(`${parameter}: ${e.type}`);
    return parameter;
  };
  const result = resultOf(bodies);
  const emitted = emitExpr(module, bodies, {
    coordinate: (d) => `c${d}`,
    array: (i) => inputs.array(i),
    load: vectorLoad,
  });
  const place = addressOf(write.strides, write.offset, (d) => `c${d}`) + slotTerm(module, write);
  const values = [0, 1, 2, 3].map((k) => {
    const coordinates = shape.map((_, d) => d === last ? `c${d} + ${k}` : `c${d}`);
    return `element(${[...coordinates, ...names.map((n) => `${n}.${"xyzw"[k]}`)].join(", ")})`;
  });
  const count = countOf(shape);
  const points = count / 4;
  const size = Math.min(target.maxInvocations, target.software ? 64 : 256);
  const groups = dispatchOf(Math.ceil(points / size), target);
  const code = `fn element(${
    [...shape.map((_, d) => `c${d}: i32`), ...parameters].join(", ")
  }) -> ${result.type} {
  ${emitted.code}
  return ${result.pack(emitted.values)};
}
@compute @workgroup_size(${size})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x + id.y * ${module.parameter(groups[0] * size)};
  if (at >= ${module.parameter(points)}) { return; }
  let flat = at * 4u;
  ${coordinatesOf(shape, 0, rank, "flat")}
  ${loads.join("\n  ")}
  let address = ${place};
  ${values.map((v, k) => `let v_${k} = ${v};`).join("\n  ")}
  ${
    outputs.map((output, o) =>
      output.store("address", [0, 1, 2, 3].map((k) => result.part(`v_${k}`, o)))
    ).join("\n  ")
  }
}`;
  return { passes: [module.pass(code, groups, count * 4)], workspace: 0 };
}

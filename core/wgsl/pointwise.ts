/**
 * Pointwise loop kernels: one invocation an element, or one a word of two 16-bit elements.
 *
 * @module
 */

import { bytesOf, type DType, type Register } from "../dtype.ts";
import type { Expr } from "../expr.ts";
import { bodiesOf, type LoopKernel, type Write } from "../kernel.ts";
import { addressOf, emitExpr } from "./expr.ts";
import { type WgslArray, WgslModule } from "./module.ts";
import { dispatchOf, type WgslProgram, type WgslSource, type WgslTarget } from "./program.ts";
import { collapse, contiguousStrides, coordinatesOf, countOf } from "./space.ts";
import { vectorWgsl } from "./vectors.ts";

/** The inputs of a kernel, bound when an expression first reads them. */
export class WgslInputs {
  readonly #module: WgslModule;
  readonly #dtypes: readonly DType[];
  readonly #bound = new Map<number, WgslArray>();
  readonly #base: number;

  /** Input `base + i` has dtype `dtypes[i]`. */
  constructor(module: WgslModule, dtypes: readonly DType[], base = 0) {
    this.#module = module;
    this.#dtypes = dtypes;
    this.#base = base;
  }

  /** Lets input `index` stand for memory already bound. */
  alias(index: number, array: WgslArray): void {
    this.#bound.set(index, array.as(this.#dtypes[index - this.#base]));
  }

  /** The array of input `index`. */
  array(index: number): WgslArray {
    let array = this.#bound.get(index);
    if (!array) {
      const source: WgslSource = { kind: "input", index };
      array = this.#module.array(source, this.#dtypes[index - this.#base]);
      this.#bound.set(index, array);
    }
    return array;
  }
}

/** WGSL's name for a register type: they are the same words. */
export function wgslType(type: Register): string {
  return type;
}

/** The term that moves an output address by a scalar, where the kernel asks for it. */
export function slotTerm(module: WgslModule, write: Write): string {
  return write.slot === undefined ? "" : ` + ${module.scalar(write.slot)} * ${write.stride ?? 0}`;
}

/** Indices of inputs and of the outputs that are the same memory. */
export type Aliases = readonly (readonly [input: number, output: number])[];

/**
 * How a function gives the values of all outputs, which are of one type: one as it is, several as an
 * array.
 */
export function resultOf(
  bodies: readonly Expr[],
): { type: string; pack: (values: readonly string[]) => string; part: Part } {
  const type = wgslType(bodies[0].type);
  if (bodies.length === 1) return { type, pack: ([value]) => value, part: (name) => name };
  const array = `array<${type}, ${bodies.length}>`;
  return {
    type: array,
    pack: (values) => `${array}(${values.join(", ")})`,
    part: (name, output) => `${name}[${output}]`,
  };
}

/** The value of output `output` in the result `name`. */
type Part = (name: string, output: number) => string;

/** The program of a loop kernel that reduces nothing. */
export function pointwiseWgsl(
  kernel: LoopKernel,
  aliases: Aliases,
  target: WgslTarget,
): WgslProgram {
  const count = countOf(kernel.shape);
  if (count === 0) return { passes: [], workspace: 0 };
  const space = collapse({
    shape: kernel.shape,
    reduced: 0,
    bodies: bodiesOf(kernel),
    write: kernel.write.strides,
  });
  const vectors = vectorWgsl(kernel, space, aliases, target);
  if (vectors) return vectors;
  const { shape, bodies } = space;
  const module = new WgslModule(target, kernel.scalars);
  const narrow = bytesOf(kernel.output) === 2;
  const write: Write = { ...kernel.write, strides: space.write };
  const pairs = narrow && writesPairs(shape, write);
  const outputs = bodies.map((_, index) =>
    module.array(
      { kind: "output", index },
      kernel.output,
      narrow && !pairs ? "halves" : "write",
    )
  );
  const inputs = new WgslInputs(module, kernel.inputs);
  for (const [i, output] of aliases) inputs.alias(i, outputs[output]);

  const result = resultOf(bodies);
  const emitted = emitExpr(module, bodies, {
    coordinate: (d) => `c${d}`,
    array: (i) => inputs.array(i),
  });
  const coordinates = coordinatesOf(shape, 0, shape.length, "flat");
  const place = addressOf(write.strides, write.offset, (d) => `c${d}`) + slotTerm(module, write);
  const points = pairs ? count / 2 : count;
  const size = workgroupSize(points, target);
  const groups = dispatchOf(Math.ceil(points / size), target);
  const store = pairs
    ? `let low = element(2u * at);
  let high = element(2u * at + 1u);
  let word = place(2u * at) >> 1u;
  ${
      outputs.map((output, k) => {
        const [low, high] = ["low", "high"].map((name) => output.half(result.part(name, k)));
        return output.storeWord("word", low, high);
      }).join("\n  ")
    }`
    : `let address = place(at);
  let value = element(at);
  ${outputs.map((output, k) => output.store("address", result.part("value", k))).join("\n  ")}`;
  const code = `fn element(flat: u32) -> ${result.type} {
  ${coordinates}
  ${emitted.code}
  return ${result.pack(emitted.values)};
}
fn place(flat: u32) -> i32 {
  ${coordinates}
  return ${place};
}
@compute @workgroup_size(${size})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x + id.y * ${module.parameter(groups[0] * size)};
  if (at >= ${module.parameter(points)}) { return; }
  ${store}
}`;
  return { passes: [module.pass(code, groups, count * 4)], workspace: 0 };
}

function workgroupSize(points: number, target: WgslTarget): number {
  return Math.min(target.maxInvocations, points <= 64 ? 64 : 256);
}

// Whether elements 2i and 2i + 1 of the iteration share a word of the output, for every i: then one
// invocation writes both.
function writesPairs(shape: readonly number[], write: Write): boolean {
  const even = (n: number): boolean => n % 2 === 0;
  return shape.length > 0 && write.strides.at(-1) === 1 && even(shape.at(-1)!) &&
    write.strides.slice(0, -1).every(even) && even(write.offset) &&
    (write.slot === undefined || even(write.stride ?? 0));
}

/** The epilogue of a hand-written kernel as a function `epilogue(acc, flat)` of the output's index. */
export function epilogueFunction(
  module: WgslModule,
  shape: readonly number[],
  body: Expr,
  inputs: WgslInputs,
): string {
  const space = collapse({ shape, reduced: 0, bodies: [body], write: contiguousStrides(shape) });
  const emitted = emitExpr(module, space.bodies, {
    coordinate: (d) => `c${d}`,
    array: (i) => inputs.array(i),
    acc: "acc",
  });
  return `fn epilogue(acc: f32, flat: u32) -> ${wgslType(body.type)} {
  ${coordinatesOf(space.shape, 0, space.shape.length, "flat")}
  ${emitted.code}
  return ${emitted.values[0]};
}`;
}

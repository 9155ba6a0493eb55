/**
 * A space, checked: in which order its parameters are drawn, which of them exist, and what a value of
 * each may be.
 *
 * @module
 */

import {
  choice,
  conditional,
  type Definition,
  integer,
  keyOf,
  logUniform,
  type Parameter,
  type Plain,
  uniform,
  type Value,
} from "./parameters.ts";

/** The parameters of one trial without the types of their space. */
export type Values = { readonly [name: string]: Value };

/** One parameter of a checked space. */
export interface Dimension {
  /** Its name. */
  readonly name: string;
  /** What it is, without its condition. */
  readonly parameter: Plain;
  /** When it exists; always, where this is missing. */
  readonly condition?: { readonly on: string; readonly is: ReadonlySet<string> };
}

/**
 * A space, checked.
 *
 * The constructor throws a `RangeError` that names the parameter if the space has no parameter, a
 * bound is wrong, a condition hangs on a name that is not there, on a number that is not whole, on a
 * value the other one cannot have, or on itself by a detour.
 */
export class Space {
  /** What the space was written as. */
  readonly definition: Definition;
  /** Its parameters, each after the one it hangs on. */
  readonly dimensions: readonly Dimension[];

  /** Checks a space. */
  constructor(definition: Definition) {
    const names = Object.keys(definition);
    if (names.length === 0) throw new RangeError("space: has no parameters, so nothing to search");
    // The one key that an object does not simply hold.
    if (names.includes("__proto__")) throw new RangeError("space: __proto__ cannot be a name");
    const ordered = new Map<string, Dimension>();
    const visit = (name: string, path: readonly string[]) => {
      if (ordered.has(name)) return;
      if (path.includes(name)) {
        throw new RangeError(`space: conditions go in a circle: ${[...path, name].join(" → ")}`);
      }
      const parameter = definition[name];
      if (parameter.kind === "conditional") {
        if (!Object.hasOwn(definition, parameter.on)) {
          throw new RangeError(
            `space: ${name} hangs on ${parameter.on}, which is not there (${names.join(", ")})`,
          );
        }
        visit(parameter.on, [...path, name]);
      }
      ordered.set(name, dimension(name, parameter, ordered));
    };
    for (const name of names) visit(name, []);
    this.definition = definition;
    this.dimensions = [...ordered.values()];
  }

  /** The parameter of that name, or undefined. */
  get(name: string): Dimension | undefined {
    return this.dimensions.find((d) => d.name === name);
  }

  /**
   * Gives each parameter that exists a value, parents first.
   *
   * @param choose a value for one parameter.
   */
  fill(choose: (dimension: Dimension) => Value): Values {
    const drawn: Record<string, Value> = {};
    for (const d of this.dimensions) {
      if (exists(d, drawn)) drawn[d.name] = choose(d);
    }
    // In the order in which the user wrote them.
    return Object.fromEntries(
      Object.keys(this.definition).filter((n) => Object.hasOwn(drawn, n)).map((n) => [n, drawn[n]]),
    );
  }

  /** What is wrong with these values, in words; undefined where they are a point of the space. */
  fault(values: Values): string | undefined {
    for (const name of Object.keys(values)) {
      if (!this.get(name)) return `parameter ${name} is not in the space`;
    }
    for (const d of this.dimensions) {
      const there = Object.hasOwn(values, d.name);
      if (there !== exists(d, values)) {
        return `parameter ${d.name} ${there ? "should not exist here" : "is missing"}`;
      }
      if (there && !contains(d.parameter, values[d.name])) {
        return `parameter ${d.name} cannot be ${JSON.stringify(values[d.name])}`;
      }
    }
    return undefined;
  }
}

/** Whether a parameter exists beside the values of those before it. */
export function exists({ condition }: Dimension, values: Values): boolean {
  return condition === undefined ||
    (Object.hasOwn(values, condition.on) && condition.is.has(keyOf(values[condition.on])));
}

/** Whether a value is one that the parameter can have. */
export function contains(parameter: Plain, value: Value): boolean {
  if (parameter.kind === "choice") {
    const key = keyOf(value);
    return parameter.values.some((v) => keyOf(v) === key);
  }
  if (typeof value !== "number" || !(value >= parameter.low && value <= parameter.high)) {
    return false;
  }
  return parameter.kind !== "integer" || (value - parameter.low) % parameter.step === 0;
}

/** How many values an integer can have. */
export function countOf({ low, high, step }: { low: number; high: number; step: number }): number {
  return Math.floor((high - low) / step) + 1;
}

function dimension(
  name: string,
  parameter: Parameter,
  before: ReadonlyMap<string, Dimension>,
): Dimension {
  try {
    if (parameter.kind !== "conditional") return { name, parameter: checked(parameter) };
    conditional(parameter.parameter, parameter);
    const plain = checked(parameter.parameter);
    const parent = before.get(parameter.on)!.parameter;
    if (parent.kind !== "choice" && parent.kind !== "integer") {
      throw new RangeError(
        `conditional: ${parameter.on} is a ${parent.kind}; a condition needs a choice or an integer`,
      );
    }
    for (const value of parameter.is) {
      if (!contains(parent, value)) {
        throw new RangeError(`conditional: ${parameter.on} can never be ${JSON.stringify(value)}`);
      }
    }
    const is = new Set(parameter.is.map(keyOf));
    return { name, parameter: plain, condition: { on: parameter.on, is } };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new RangeError(`space: parameter ${name}: ${error.message}`);
  }
}

/** Checks a parameter again: a space may be written by hand, or read from a file. */
function checked(parameter: Plain): Plain {
  switch (parameter.kind) {
    case "uniform":
      return uniform(parameter.low, parameter.high);
    case "logUniform":
      return logUniform(parameter.low, parameter.high);
    case "integer":
      return integer(parameter.low, parameter.high, parameter);
    case "choice":
      return choice(parameter.values);
    default: {
      const { kind } = parameter as { kind?: unknown };
      throw new RangeError(`${String(kind)} is not a kind of parameter`);
    }
  }
}

/**
 * Parameters of the base that an adapter has values of its own for: whole modules (`modules_to_save`)
 * and biases (`bias`). The base's stay as they are.
 *
 * @module
 */

import { noGrad, type Tensor } from "../core/mod.ts";
import { Adapter, type Module, Parameter } from "../nn/mod.ts";
import { type Adapted, isLoraLayer } from "./layers.ts";
import { BASE, byRows } from "./rows.ts";
import { baseModules } from "./target.ts";

/** One adapter's values, by the parameters' paths below the module. */
export class OwnValues extends Adapter {
  /** Such as "weight" and "bias"; below a module of several layers "dense.weight". */
  readonly values: Map<string, Parameter> = new Map();
}

/** All adapters' values for one module. */
export class Own extends Adapter implements Adapted {
  /** Attached adapters by name. */
  readonly adapters: Map<string, OwnValues> = new Map();
  /** Names of the active adapters; one at most has values here. */
  active: readonly string[] = [];
  /** See {@linkcode Adapted}. */
  rows: readonly string[] | null = null;
}

interface WithForward extends Module {
  ownParameters: Own;
  forward(...args: unknown[]): Tensor;
}

// deno-lint-ignore no-explicit-any
type AnyClass = new (...args: any[]) => WithForward;

const extended = new WeakMap<AnyClass, AnyClass>();

/** The own values on a module, or null. */
export function ownOf(module: Module): Own | null {
  const own = (module as Module & { ownParameters?: unknown }).ownParameters;
  return own instanceof Own ? own : null;
}

/**
 * Gives `name` its own copies of parameters of `module`, by their paths below it. A module can be of any
 * class, with state that no copy could reach: so it stays, and its forward reads other parameters.
 */
export function giveOwn(module: Module, name: string, paths: readonly string[]): OwnValues {
  const own = ownOf(module) ?? extend(module);
  const values = new OwnValues();
  for (const path of paths) {
    const [holder, field] = locate(module, path);
    values.values.set(path, new Parameter(noGrad(() => holder[field].mul(1))));
  }
  own.adapters.set(name, values);
  return values;
}

/**
 * Gives `name` a copy of each of the modules (`modules_to_save`), which stand at the paths beside them.
 *
 * Throws an `Error`, and changes nothing, where one has no parameters.
 */
export function giveModules(saved: readonly (readonly [string, Module])[], name: string): void {
  const given = saved.map(([path, module]) => {
    const paths = parameterPaths(module);
    if (paths.length === 0) throw new Error(`modules_to_save: ${path} has no parameters`);
    return [module, paths] as const;
  });
  for (const [module, paths] of given) giveOwn(module, name, paths);
}

/** Paths of the parameters below `module`, those of adapters left out. */
export function parameterPaths(module: Module): string[] {
  return baseModules(module).flatMap(([inner, m]) =>
    parameterFields(m).map((field) => inner === "" ? field : `${inner}.${field}`)
  );
}

/** Fields of `module` that hold a parameter. */
export function parameterFields(module: Module): string[] {
  return Object.entries(module).flatMap(([field, v]) => v instanceof Parameter ? [field] : []);
}

/** Takes the values of one adapter away, and with the last one everything. */
export function takeOwn(module: Module, name: string): void {
  const own = ownOf(module);
  if (!own) return;
  own.adapters.delete(name);
  own.active = own.active.filter((other) => other !== name);
  if (own.adapters.size === 0) restore(module);
}

/** Hands all own values of `from` on to the layer that takes its place. */
export function moveOwn(from: Module, to: Module): void {
  const own = ownOf(from);
  if (!own) return;
  restore(from);
  extend(to, own);
}

/** The base's parameter that stands at `path` below `module`. */
export function baseParameter(module: Module, path: string): Parameter {
  const [holder, field] = locate(module, path);
  return holder[field];
}

/** Puts another parameter at `path` below `module`. */
export function setParameter(module: Module, path: string, value: Parameter): void {
  const [holder, field] = locate(module, path);
  holder[field] = value;
}

function extend(module: Module, own: Own = new Own()): Own {
  const base = module.constructor as AnyClass;
  let withOwn = extended.get(base);
  if (!withOwn) {
    withOwn = class extends base {
      override forward(...args: unknown[]): Tensor {
        return forwardOwn(this, args, (given) => super.forward(...given));
      }
    };
    // Messages name the class that the user knows.
    Object.defineProperty(withOwn, "name", { value: base.name });
    extended.set(base, withOwn);
  }
  Object.setPrototypeOf(module, withOwn.prototype);
  (module as WithForward).ownParameters = own;
  return own;
}

function restore(module: Module): void {
  delete (module as Module & { ownParameters?: unknown }).ownParameters;
  Object.setPrototypeOf(module, Object.getPrototypeOf(Object.getPrototypeOf(module)));
}

function forwardOwn(
  module: WithForward,
  args: unknown[],
  forward: (args: unknown[]) => Tensor,
): Tensor {
  const own = module.ownParameters;
  if (own.rows) {
    const [x, ...rest] = args;
    return byRows(x as Tensor, own.rows, (name, part) =>
      // Layers within that have adapters see the rows of this part alone.
      onOneAdapter(module, name, () => forwardOwn(module, [part, ...rest], forward)));
  }
  const name = own.active.find((name) => own.adapters.has(name));
  if (name === undefined) return forward(args);
  const values = own.adapters.get(name)!.values;
  // Recording is synchronous: nobody sees the parameters while they are exchanged.
  const exchanged = [...values].map(([path, value]) => {
    const [holder, field] = locate(module, path);
    const before = holder[field];
    holder[field] = value;
    return [holder, field, before] as const;
  });
  try {
    return forward(args);
  } finally {
    for (const [holder, field, before] of exchanged) holder[field] = before;
  }
}

/** Everything adapted in `module`, itself and its own values included, uses `name` alone in `fn`. */
function onOneAdapter<T>(module: Module, name: string, fn: () => T): T {
  const within = module.modules().filter((m) => m instanceof Own || isLoraLayer(m));
  const before = within.map((m) => [m, m.active, m.rows] as const);
  for (const m of within) {
    m.active = name !== BASE && m.adapters.has(name) ? [name] : [];
    m.rows = null;
  }
  try {
    return fn();
  } finally {
    for (const [m, active, rows] of before) {
      m.active = active;
      m.rows = rows;
    }
  }
}

function locate(module: Module, path: string): [Record<string, Parameter>, string] {
  const parts = path.split(".");
  const field = parts.pop()!;
  // deno-lint-ignore no-explicit-any
  let at: any = module;
  for (const part of parts) at = at instanceof Map ? at.get(part) : at[part];
  return [at, field];
}

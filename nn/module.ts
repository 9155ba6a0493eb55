/**
 * Modules: classes with plain fields. Their parameters are found by walking the fields.
 *
 * @module
 */

import { type DType, type Shape, type Tensor, Variable } from "../core/mod.ts";
import { openSafetensors, type SafetensorsFile, writeSafetensors } from "../core/safetensors.ts";
import { checkKeys, type HostTensor, loadTensor, safetensorsInput, writeHost } from "./state.ts";

/** Options of a {@linkcode Parameter}. */
export interface ParameterOptions {
  /** Whether it is trained. Default true. */
  readonly requiresGrad?: boolean;
  /**
   * Whether a subclass computes the value from other variables: then it has no memory of its own.
   *
   * @internal
   */
  readonly computed?: boolean;
}

/** A variable that a module learns: what an optimizer is given. */
export class Parameter<D extends DType = DType> extends Variable<D> {
  /** A parameter that starts as `value`. */
  constructor(value: Tensor<D>, options: ParameterOptions = {}) {
    super(value, { ...options, requiresGrad: options.requiresGrad ?? true });
  }
}

/** Options of {@linkcode Module.loadStateDict}. */
export interface LoadOptions {
  /** Whether keys that are missing or unexpected are an error. Shapes always must fit. Default true. */
  readonly strict?: boolean;
  /** Which keys keep what they hold where they are missing. Default: none. */
  readonly mayMiss?: (key: string) => boolean;
}

/** Options of {@linkcode Module.load}. */
export interface LoadFileOptions extends LoadOptions {
  /** What a file's key is called here; null leaves it out. Default: the same. */
  readonly rename?: (key: string) => string | null;
}

/**
 * Base of all layers and models.
 *
 * What a field holds decides what it is: a {@linkcode Parameter} is learned and saved; another
 * `Variable` is saved only; a `Module`, and an array or a `Map` of any of these, is walked into.
 * Private `#fields` are not seen: tables that can be computed again belong there. The path of a
 * parameter, field names joined by dots, is its key in a checkpoint.
 *
 * @example
 * ```ts
 * import { init, type Tensor, tensor } from "@graft/ml";
 * import { Linear, Module } from "@graft/ml/nn";
 *
 * class Mlp extends Module {
 *   up: Linear = new Linear(2, 8);
 *   down: Linear = new Linear(8, 1);
 *   forward(x: Tensor): Tensor { // [B, 2] -> [B, 1]
 *     return this.down.forward(this.up.forward(x).relu());
 *   }
 * }
 *
 * await init({ device: "cpu" });
 * const model = new Mlp();
 * console.log(model.namedParameters().map(([name]) => name)); // ["up.weight", "up.bias", ...]
 * console.log(model.forward(tensor([[1, 2], [3, 4]])).shape); // [2, 1]
 * ```
 */
export abstract class Module {
  /** Whether layers such as dropout behave as in training; set by {@linkcode train} and `eval`. */
  training = true;

  /** This module under `prefix` and all modules in it, each once, with their paths. */
  namedModules(prefix = ""): [string, Module][] {
    const found: [string, Module][] = [];
    const seen = new Set<Module>();
    const visit = (module: Module, path: string): void => {
      if (seen.has(module)) return;
      seen.add(module);
      found.push([path, module]);
      for (const [name, value] of children(module)) {
        if (value instanceof Module) visit(value, joined(path, name));
      }
    };
    visit(this, prefix);
    return found;
  }

  /** This module and all modules in it. */
  modules(): Module[] {
    return this.namedModules().map(([, module]) => module);
  }

  /** All parameters with their paths; one that stands under several names comes with the first. */
  namedParameters(): [string, Parameter][] {
    const seen = new Set<Variable>();
    const found: [string, Parameter][] = [];
    for (const [name, variable] of variablesOf(this, true)) {
      if (!(variable instanceof Parameter) || seen.has(variable)) continue;
      seen.add(variable);
      variable.name ??= name;
      found.push([name, variable]);
    }
    return found;
  }

  /** All parameters, each once. */
  parameters(): Parameter[] {
    return this.namedParameters().map(([, parameter]) => parameter);
  }

  /** The parameters that require a gradient. */
  trainable(): Parameter[] {
    return this.parameters().filter((parameter) => parameter.requiresGrad);
  }

  /** Stops training of the parameters whose path matches `pattern` (default: of all). */
  freeze(pattern?: RegExp): this {
    return this.#require(false, pattern);
  }

  /**
   * Lets the parameters whose path matches `pattern` (default: all) be trained.
   *
   * Throws a `TypeError`, and changes nothing, where one of them is held in packed form.
   */
  unfreeze(pattern?: RegExp): this {
    return this.#require(true, pattern);
  }

  #require(requiresGrad: boolean, pattern?: RegExp): this {
    const before: [Parameter, boolean][] = [];
    try {
      for (const [name, variable] of variablesOf(this, true)) {
        // `search` leaves the state of a global pattern alone.
        if (!(variable instanceof Parameter) || (pattern && name.search(pattern) < 0)) continue;
        before.push([variable, variable.requiresGrad]);
        variable.name ??= name;
        variable.requiresGrad = requiresGrad;
      }
    } catch (error) {
      for (const [parameter, was] of before) parameter.requiresGrad = was;
      throw error;
    }
    return this;
  }

  /** Sets `training` here and in all modules within. */
  train(training = true): this {
    for (const module of this.modules()) module.training = training;
    return this;
  }

  /** As `train(false)`: how a model is evaluated. */
  eval(): this {
    return this.train(false);
  }

  /**
   * What a checkpoint of this module holds, by key: parameters and other variables, those of adapters
   * left out. One that stands under several names (tied weights) comes once, under the first.
   */
  stateDict(): Map<string, Variable> {
    const state = new Map<string, Variable>();
    const seen = new Set<Variable>();
    for (const [name, variable] of variablesOf(this, false)) {
      if (seen.has(variable)) continue;
      seen.add(variable);
      state.set(name, variable);
    }
    return state;
  }

  /**
   * Overwrites what `stateDict()` holds. Nothing is changed where anything does not fit.
   *
   * Throws an `Error` that lists every missing, unexpected and mis-shaped key.
   */
  async loadStateDict(
    state: ReadonlyMap<string, Tensor | HostTensor>,
    options: LoadOptions = {},
  ): Promise<this> {
    const targets = this.#targets(state, options, `load the state of ${this.constructor.name}`);
    for (const [key, variable] of targets) {
      const value = state.get(key)!;
      if (value instanceof Variable || "node" in value) variable.assign(value as Tensor);
      else await writeHost(variable, value, key);
    }
    return this;
  }

  /**
   * Overwrites the state from a safetensors file, tensor by tensor; F16, BF16 and F32 are converted to
   * the dtype of the parameter. Nothing is changed where keys or shapes do not fit.
   *
   * Throws an `Error` that lists every missing, unexpected and mis-shaped key.
   */
  async load(path: string | readonly string[], options: LoadFileOptions = {}): Promise<this> {
    const { rename = (key: string): string => key } = options;
    const files: SafetensorsFile[] = [];
    try {
      for (const p of typeof path === "string" ? [path] : path) {
        files.push(await openSafetensors(p));
      }
      const origins = new Map<string, { file: SafetensorsFile; name: string; shape: Shape }>();
      for (const file of files) {
        for (const [name, { shape }] of file.entries) {
          const key = rename(name);
          if (key !== null) origins.set(key, { file, name, shape });
        }
      }
      const what = `load ${files.map((f) => f.name).join(", ")} into ${this.constructor.name}`;
      for (const [key, variable] of this.#targets(origins, options, what)) {
        const { file, name } = origins.get(key)!;
        await loadTensor(variable, file, name, `${what}: key "${name}"`);
      }
    } finally {
      for (const file of files) file.close();
    }
    return this;
  }

  /**
   * Writes the state into a safetensors file, which is whole or what it was before. `rename` says what a
   * key is called there.
   */
  async save(path: string, rename: (key: string) => string = (key) => key): Promise<void> {
    const state = [...this.stateDict()].map(([key, variable]) =>
      [rename(key), safetensorsInput(variable)] as const
    );
    await writeSafetensors(path, state, { format: "pt" });
  }

  /** For each key of `state` that is to be loaded, the variable it goes to. */
  #targets(
    state: ReadonlyMap<string, { readonly shape: Shape }>,
    { strict = true, mayMiss }: LoadOptions,
    what: string,
  ): [string, Variable][] {
    // A tied weight may stand in a file under any of its names.
    const namesOf = new Map<Variable, string[]>();
    const variables = new Map<string, Variable>();
    for (const [name, variable] of variablesOf(this, false)) {
      variables.set(name, variable);
      const names = namesOf.get(variable);
      if (names) names.push(name);
      else namesOf.set(variable, [name]);
    }
    const needed = new Map<string, Shape>();
    for (const [variable, names] of namesOf) {
      const present = names.filter((name) => state.has(name));
      if (present.length === 0 && mayMiss?.(names[0])) continue;
      for (const name of present.length > 0 ? present : names.slice(0, 1)) {
        needed.set(name, variable.shape);
      }
    }
    checkKeys(what, needed, state, strict);
    return [...needed.keys()].filter((key) => state.has(key)).map((key) => [
      key,
      variables.get(key)!,
    ]);
  }
}

/**
 * A module added to a model whose own state stays what it was: `stateDict()`, `load()` and `save()` of
 * the model leave adapters out, `parameters()` has theirs too.
 */
export abstract class Adapter extends Module {}

/**
 * Puts `module` in the place that `path` names below `root`.
 *
 * Throws a `RangeError` where no module stands there.
 */
export function replaceModule(root: Module, path: string, module: Module): void {
  const parts = path.split(".");
  const last = parts.pop()!;
  // deno-lint-ignore no-explicit-any
  let at: any = root;
  for (const part of parts) at = at instanceof Map ? at.get(part) : at?.[part];
  const old = at instanceof Map ? at.get(last) : at?.[last];
  if (!(old instanceof Module)) {
    throw new RangeError(`replaceModule: ${root.constructor.name} has no module "${path}"`);
  }
  if (at instanceof Map) at.set(last, module);
  else at[last] = module;
}

/** The parameters that stand in several places: tied weights. */
export function tiedParameters(root: Module): Set<Parameter> {
  const seen = new Set<Parameter>(), tied = new Set<Parameter>();
  for (const module of root.modules()) {
    for (const value of Object.values(module)) {
      if (!(value instanceof Parameter)) continue;
      if (seen.has(value)) tied.add(value);
      seen.add(value);
    }
  }
  return tied;
}

function joined(prefix: string, name: string): string {
  return prefix === "" ? name : `${prefix}.${name}`;
}

/** The variables and modules that the fields of `module` hold, with their names from there. */
function children(module: Module): [string, Variable | Module][] {
  const found: [string, Variable | Module][] = [];
  const visit = (value: unknown, path: string): void => {
    if (value instanceof Variable || value instanceof Module) found.push([path, value]);
    else if (Array.isArray(value)) value.forEach((v, i) => visit(v, joined(path, `${i}`)));
    else if (value instanceof Map) {
      for (const [key, v] of value) {
        visit(v, joined(path, `${key}`));
      }
    }
  };
  for (const [name, value] of Object.entries(module)) visit(value, name);
  return found;
}

/** All variables below `root` under all their names. */
function variablesOf(root: Module, withAdapters: boolean): [string, Variable][] {
  const found: [string, Variable][] = [];
  for (const [path, module] of root.namedModules()) {
    if (!withAdapters && inAdapter(root, path)) continue;
    for (const [name, value] of children(module)) {
      if (value instanceof Variable) found.push([joined(path, name), value]);
    }
  }
  return found;
}

/** Whether the module at `path` is an adapter or part of one. */
function inAdapter(root: Module, path: string): boolean {
  if (path === "") return root instanceof Adapter;
  // deno-lint-ignore no-explicit-any
  let at: any = root;
  for (const part of path.split(".")) {
    at = at instanceof Map ? at.get(part) : at[part];
    if (at instanceof Adapter) return true;
  }
  return false;
}

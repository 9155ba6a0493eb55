/**
 * What all optimizers share: parameter groups, the step, the state.
 *
 * @module
 */

import { type Device, type Shape, type Tensor, Variable, where, zeros } from "../core/mod.ts";
import { internally, withoutGradients } from "../core/graph.ts";

/** Parameters with settings of their own. */
export interface ParameterGroup {
  /** What is updated. */
  readonly parameters: readonly Variable[];
  /** Learning rate; default: the optimizer's. */
  readonly lr?: number;
  /** Weight decay; default: the optimizer's. */
  readonly weightDecay?: number;
}

/** A group with its settings; `lr` may be changed between steps, as a schedule does. */
export interface OptimizerGroup {
  /** What is updated. */
  readonly parameters: readonly Variable[];
  /** Learning rate. */
  lr: number;
  /** Weight decay. */
  weightDecay: number;
}

/** Options of {@linkcode Optimizer.step}. */
export interface StepOptions {
  /**
   * A bool scalar: where it is false, this step changes neither parameters nor state. So a gradient
   * that is not finite ruins nothing, without a transfer to the host.
   */
  readonly when?: Tensor;
}

/** The part of an optimizer's state that is numbers. */
export interface OptimizerCounters {
  /** The class's name. */
  readonly kind: string;
  /** Learning rate and weight decay of each group. */
  readonly groups: readonly { readonly lr: number; readonly weightDecay: number }[];
  /** Steps each parameter has taken, in the order of the groups. */
  readonly steps: readonly number[];
}

/** Elements on the host. */
export interface StateTensor {
  /** Sizes of the dimensions. */
  readonly shape: Shape;
  /** The elements, row-major. */
  readonly data: Float32Array<ArrayBuffer>;
}

/** All of an optimizer's state, on the host, to the bit. */
export interface OptimizerState {
  /** The numbers. */
  readonly counters: OptimizerCounters;
  /** By name and the parameter's number: "exp_avg.0". */
  readonly tensors: ReadonlyMap<string, StateTensor>;
}

/** Base of all optimizers: a subclass says how one parameter is updated. */
export abstract class Optimizer {
  /** The groups of parameters, with settings that may be changed between steps. */
  readonly groups: readonly OptimizerGroup[];
  readonly #parameters: readonly Variable[];
  readonly #device: Device;
  readonly #steps: number[];
  readonly #state: Map<string, Variable>[];

  /**
   * Throws a `RangeError` on no parameters, one given twice, or a learning rate or weight decay that is
   * negative or not a number; a `TypeError` on a parameter that requires no gradient.
   */
  constructor(
    parameters: readonly Variable[] | readonly ParameterGroup[],
    lr: number,
    weightDecay: number,
  ) {
    const name = new.target.name;
    const isGroups = parameters.length > 0 && !(parameters[0] instanceof Variable);
    const groups = isGroups
      ? parameters as readonly ParameterGroup[]
      : [{ parameters: parameters as readonly Variable[] }];
    this.groups = groups.map((group) => ({
      parameters: group.parameters,
      lr: atLeastZero(name, "lr", group.lr ?? lr),
      weightDecay: atLeastZero(name, "weightDecay", group.weightDecay ?? weightDecay),
    }));
    this.#parameters = this.groups.flatMap((group) => group.parameters);
    if (this.#parameters.length === 0) {
      throw new RangeError(`${name}: needs at least one parameter, got none (is all frozen?)`);
    }
    const seen = new Set<Variable>();
    this.#parameters.forEach((p, i) => {
      const label = p.name ?? `parameter ${i}`;
      if (seen.has(p)) throw new RangeError(`${name}: ${label} is given twice`);
      if (!p.requiresGrad) {
        throw new TypeError(`${name}: needs parameters that require a gradient; ${label} does not`);
      }
      seen.add(p);
    });
    this.#device = this.#parameters[0].device;
    this.#steps = this.#parameters.map(() => 0);
    this.#state = this.#parameters.map(() => new Map());
  }

  /** All parameters, in the order of the groups. */
  get parameters(): readonly Variable[] {
    return this.#parameters;
  }

  /** Sets the learning rate of every group. */
  set lr(lr: number) {
    atLeastZero(this.constructor.name, "lr", lr);
    for (const group of this.groups) group.lr = lr;
  }
  /** The learning rate of the first group. */
  get lr(): number {
    return this.groups[0].lr;
  }

  /**
   * Updates every parameter that has a gradient, and runs all that is recorded. On webgpu it resolves
   * once the work is enqueued.
   */
  async step(options: StepOptions = {}): Promise<void> {
    const { when } = options;
    const set = (variable: Variable, value: Tensor): Tensor => {
      const result = when ? where(when, value, variable) : value;
      variable.assign(result);
      return result;
    };
    internally(() =>
      withoutGradients(() => {
        let index = 0;
        for (const group of this.groups) {
          atLeastZero(this.constructor.name, "lr", group.lr);
          for (const parameter of group.parameters) {
            const i = index++;
            if (!parameter.grad) continue;
            const step = ++this.#steps[i];
            const state = (name: string): Variable => this.#stateOf(i, name);
            this.update({ parameter, gradient: parameter.grad, group, step, state, set });
          }
        }
      })
    );
    await this.#device.flush();
  }

  /** Records the update of one parameter. */
  protected abstract update(context: UpdateContext): void;

  /** Forgets the gradients. */
  zeroGrad(): void {
    for (const parameter of this.#parameters) parameter.grad = null;
  }

  #stateOf(index: number, name: string): Variable {
    const state = this.#state[index];
    let variable = state.get(name);
    if (!variable) {
      const { shape, name: of } = this.#parameters[index];
      variable = new Variable(zeros(shape), { name: `${name} of ${of ?? `parameter ${index}`}` });
      state.set(name, variable);
    }
    return variable;
  }

  /** The numbers of the state: a plain object, as they stand now. */
  counters(): OptimizerCounters {
    return {
      kind: this.constructor.name,
      groups: this.groups.map(({ lr, weightDecay }) => ({ lr, weightDecay })),
      steps: [...this.#steps],
    };
  }

  /** Reads the whole state. */
  async state(): Promise<OptimizerState> {
    const tensors = new Map<string, StateTensor>();
    for (const [i, state] of this.#state.entries()) {
      for (const [name, variable] of state) {
        const data = await variable.data() as Float32Array<ArrayBuffer>;
        tensors.set(`${name}.${i}`, { shape: variable.shape, data });
      }
    }
    return { counters: this.counters(), tensors };
  }

  /**
   * Goes on from a state that another optimizer of this kind, with the same parameters, gave.
   *
   * Throws an `Error` that lists what does not fit; then nothing is changed.
   */
  async loadState({ counters, tensors }: OptimizerState): Promise<void> {
    const problems: string[] = [];
    const kind = this.constructor.name;
    if (counters.kind !== kind) problems.push(`it is of ${counters.kind}, needs ${kind}`);
    if (counters.groups.length !== this.groups.length) {
      problems.push(`it has ${counters.groups.length} groups, needs ${this.groups.length}`);
    }
    if (counters.steps.length !== this.#parameters.length) {
      problems.push(`it has ${counters.steps.length} parameters, needs ${this.#parameters.length}`);
    }
    const targets: { i: number; name: string; value: StateTensor }[] = [];
    for (const [key, value] of tensors) {
      const dot = key.lastIndexOf(".");
      const i = Number(key.slice(dot + 1));
      const parameter = this.#parameters[i];
      if (!parameter || dot < 1) problems.push(`"${key}" belongs to no parameter`);
      else if (parameter.shape.join() !== value.shape.join()) {
        problems.push(
          `"${key}" needs shape [${parameter.shape.join(", ")}], has [${value.shape.join(", ")}]`,
        );
      } else targets.push({ i, name: key.slice(0, dot), value });
    }
    if (problems.length > 0) {
      throw new Error(`${kind}.loadState: the state does not fit: ${problems.join("; ")}`);
    }
    for (const { i, name, value } of targets) await this.#stateOf(i, name).write(value.data);
    counters.groups.forEach(({ lr, weightDecay }, g) => {
      Object.assign(this.groups[g], { lr, weightDecay });
    });
    counters.steps.forEach((step, i) => this.#steps[i] = step);
  }
}

/** What {@linkcode Optimizer} hands to the update of one parameter. */
export interface UpdateContext {
  /** What is updated. */
  readonly parameter: Variable;
  /** Its gradient. */
  readonly gradient: Variable;
  /** The settings of its group. */
  readonly group: OptimizerGroup;
  /** Number of this parameter's step, from 1. */
  readonly step: number;
  /** A variable of the parameter's shape that starts as 0 and lasts. */
  state(name: string): Variable;
  /** Assigns, where the step takes place; gives what the variable then holds. */
  set(variable: Variable, value: Tensor): Tensor;
}

/** Returns `value`, or throws where it is negative or not a number. */
export function atLeastZero(optimizer: string, name: string, value: number): number {
  if (!(value >= 0 && value < Infinity)) {
    throw new RangeError(`${optimizer}: ${name} must be a number from 0 on, got ${value}`);
  }
  return value;
}

/** Returns `value`, or throws where it is not in [0, 1). */
export function belowOne(optimizer: string, name: string, value: number): number {
  if (!(value >= 0 && value < 1)) {
    throw new RangeError(`${optimizer}: ${name} must be in [0, 1), got ${value}`);
  }
  return value;
}

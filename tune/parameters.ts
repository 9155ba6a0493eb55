/**
 * The parameters a space is made of: plain objects, so that a study's file can hold them, and the
 * functions that make them.
 *
 * @module
 */

/** What a parameter may be: anything JSON can hold. */
export type Value = string | number | boolean | null | readonly Value[] | {
  readonly [key: string]: Value;
};

/** A number anywhere between two bounds. */
export interface Uniform {
  /** Which parameter this is. */
  readonly kind: "uniform";
  /** The least value. */
  readonly low: number;
  /** The greatest value. */
  readonly high: number;
}

/** A number between two bounds whose logarithm is even. */
export interface LogUniform {
  /** Which parameter this is. */
  readonly kind: "logUniform";
  /** The least value, above 0. */
  readonly low: number;
  /** The greatest value. */
  readonly high: number;
}

/** A whole number: `low`, `low + step`, and so on up to `high`. */
export interface Integer {
  /** Which parameter this is. */
  readonly kind: "integer";
  /** The least value. */
  readonly low: number;
  /** The greatest value. */
  readonly high: number;
  /** The distance between neighbours. */
  readonly step: number;
  /** Whether the logarithm is even, rather than the number. */
  readonly log: boolean;
}

/** One of a list. */
export interface Choice<T extends Value = Value> {
  /** Which parameter this is. */
  readonly kind: "choice";
  /** What there is to choose from. */
  readonly values: readonly T[];
}

/** A parameter without a condition. */
export type Plain = Uniform | LogUniform | Integer | Choice;

/** A parameter that exists only where another one has one of certain values. */
export interface Conditional<P extends Plain = Plain> {
  /** Which parameter this is. */
  readonly kind: "conditional";
  /** The parameter itself. */
  readonly parameter: P;
  /** The name of the other one: a choice or an integer. */
  readonly on: string;
  /** The other one's values with which this one exists. */
  readonly is: readonly Value[];
}

/** A parameter of a space. */
export type Parameter = Plain | Conditional;

/** What a space is written as: parameters by name. */
export type Definition = { readonly [name: string]: Parameter };

/** The type of a parameter's values. */
export type ValueOf<P extends Parameter> = P extends Conditional<infer Q> ? PlainValue<Q>
  : P extends Plain ? PlainValue<P>
  : never;

/** The type of the values of a parameter without a condition. */
export type PlainValue<P extends Plain> = P extends Choice<infer T> ? T : number;

/** The parameters of one trial, typed by its space: conditional ones may be missing. */
export type Params<S extends Definition> =
  & { readonly [K in keyof S as S[K] extends Conditional ? never : K]: ValueOf<S[K]> }
  & { readonly [K in keyof S as S[K] extends Conditional ? K : never]?: ValueOf<S[K]> };

/**
 * A number anywhere in [low, high], each value as likely.
 *
 * @throws RangeError if a bound is not finite or `low` is above `high`.
 */
export function uniform(low: number, high: number): Uniform {
  checkBounds("uniform", low, high);
  return { kind: "uniform", low, high };
}

/**
 * A number in [low, high] whose logarithm is even: for learning rates and decays.
 *
 * @throws RangeError if a bound is not finite, `low` is above `high`, or `low` is not above 0.
 */
export function logUniform(low: number, high: number): LogUniform {
  checkBounds("logUniform", low, high);
  checkPositive("logUniform", low);
  return { kind: "logUniform", low, high };
}

/** Options of `integer`. */
export interface IntegerOptions {
  /** The distance between neighbours, counted from `low`. Default 1. */
  readonly step?: number;
  /** Whether the logarithm is even, rather than the number; only with a step of 1. Default false. */
  readonly log?: boolean;
}

/**
 * A whole number in [low, high]. With a step, `high` is a bound and need not be met:
 * `integer(1, 6, { step: 2 })` is 1, 3 or 5.
 *
 * @throws RangeError if a bound or the step is not a whole number, `low` is above `high`, the step is
 * below 1, or `log` comes with a `low` below 1 or a step other than 1.
 */
export function integer(low: number, high: number, options: IntegerOptions = {}): Integer {
  const { step = 1, log = false } = options;
  checkBounds("integer", low, high);
  for (const [name, value] of Object.entries({ low, high, step })) {
    if (!Number.isSafeInteger(value)) {
      throw new RangeError(`integer: ${name} must be a whole number, got ${value}`);
    }
  }
  if (step < 1) throw new RangeError(`integer: step must be at least 1, got ${step}`);
  if (log) checkPositive("integer with log", low);
  if (log && step !== 1) throw new RangeError(`integer: log needs a step of 1, got ${step}`);
  return { kind: "integer", low, high, step, log };
}

/**
 * One of a list of values, none of which stands twice.
 *
 * @throws RangeError if the list is empty, a value is there twice, or is not something JSON can hold.
 */
export function choice<const T extends Value>(values: readonly T[]): Choice<T> {
  if (!Array.isArray(values)) throw new RangeError("choice: needs a list of values");
  if (values.length === 0) {
    throw new RangeError("choice: needs at least one value, got an empty list");
  }
  const seen = new Set<string>();
  for (const value of values) {
    checkJson(value);
    const key = keyOf(value);
    if (seen.has(key)) throw new RangeError(`choice: ${key} is in the list twice`);
    seen.add(key);
  }
  return { kind: "choice", values: [...values] };
}

/**
 * A parameter that exists only where the parameter `on`, a choice or an integer of the same space,
 * has one of the values `is`. Where it does not exist, a trial's `params` has no such key. A condition
 * may hang on a parameter that has one itself.
 *
 * The names and values are checked when a study takes the space.
 *
 * @throws RangeError if `is` is empty or the parameter already has a condition.
 *
 * @example
 * ```ts
 * import { choice, conditional, Study, uniform } from "@graft/ml/tune";
 *
 * const study = new Study({
 *   space: {
 *     optimizer: choice(["sgd", "adam"]),
 *     momentum: conditional(uniform(0, 0.99), { on: "optimizer", is: ["sgd"] }),
 *   },
 * });
 * const { optimizer, momentum } = study.ask()!.params; // "sgd" | "adam", number | undefined
 * console.log(optimizer === "sgd" ? momentum : "no momentum");
 * ```
 */
export function conditional<P extends Plain>(
  parameter: P,
  { on, is }: { readonly on: string; readonly is: readonly Value[] },
): Conditional<P> {
  if ((parameter as Parameter).kind === "conditional") {
    throw new RangeError(
      "conditional: the parameter has a condition already; to need both, hang one on the other",
    );
  }
  if (is.length === 0) {
    throw new RangeError(`conditional: "is" lists no value of ${on}, so it would never exist`);
  }
  return { kind: "conditional", parameter, on, is: [...is] };
}

/** The text by which two values are the same: JSON with keys in order. */
export function keyOf(value: Value): string {
  return JSON.stringify(value, (_key, inner) => {
    if (inner === null || typeof inner !== "object" || Array.isArray(inner)) return inner;
    return Object.fromEntries(Object.entries(inner).sort(([a], [b]) => a < b ? -1 : a > b ? 1 : 0));
  });
}

function checkBounds(operation: string, low: number, high: number): void {
  if (!Number.isFinite(low) || !Number.isFinite(high)) {
    throw new RangeError(`${operation}: bounds must be finite numbers, got ${low} and ${high}`);
  }
  if (low > high) {
    throw new RangeError(`${operation}: low must not be above high, got ${low} and ${high}`);
  }
  if (!Number.isFinite(high - low)) {
    throw new RangeError(`${operation}: the bounds ${low} and ${high} are too far apart`);
  }
}

function checkPositive(operation: string, low: number): void {
  if (!(low > 0)) throw new RangeError(`${operation}: low must be above 0, got ${low}`);
}

function checkJson(value: unknown): void {
  const fine = value === null || typeof value === "string" || typeof value === "boolean" ||
    (typeof value === "number" && Number.isFinite(value));
  if (fine) return;
  const plain = typeof value === "object" &&
    (Array.isArray(value) || Object.getPrototypeOf(value) === Object.prototype);
  if (!plain) throw new RangeError(`choice: ${String(value)} is not a value that JSON can hold`);
  for (const inner of Object.values(value as object)) checkJson(inner);
}

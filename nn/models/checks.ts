/**
 * Checks that configurations share.
 *
 * @module
 */

/** Throws a `RangeError` that names the first of `keys` that is no whole number from 1 on. */
export function checkSizes(
  config: Readonly<Record<string, unknown>>,
  keys: readonly string[],
  source: string,
): void {
  for (const key of keys) {
    const value = config[key];
    if (!Number.isInteger(value) || (value as number) < 1) {
      throw new RangeError(`${source}: ${key} must be a whole number from 1 on, is ${value}`);
    }
  }
}

/** Throws a `RangeError` that names the first of `keys` that is no probability below 1. */
export function checkProbabilities(
  config: Readonly<Record<string, unknown>>,
  keys: readonly string[],
  source: string,
): void {
  for (const key of keys) {
    const value = config[key];
    if (typeof value !== "number" || !(value >= 0 && value < 1)) {
      throw new RangeError(`${source}: ${key} must be in [0, 1), is ${JSON.stringify(value)}`);
    }
  }
}

/** Throws a `TypeError` where `model_type` is given and another. */
export function checkModelType(type: unknown, needed: string, source: string): void {
  if (type !== undefined && type !== needed) {
    throw new TypeError(`${source}: needs model_type "${needed}", has ${JSON.stringify(type)}`);
  }
}

/** Throws a `RangeError` where `size` is no multiple of `heads`. */
export function checkHeads(
  config: Readonly<Record<string, unknown>>,
  size: string,
  heads: string,
  source: string,
): void {
  if ((config[size] as number) % (config[heads] as number) !== 0) {
    throw new RangeError(
      `${source}: ${size} must be a multiple of ${heads}, got ${config[size]} and ${config[heads]}`,
    );
  }
}

/** Throws a `TypeError` that names the first of `keys` that is true. */
export function checkAbsent(
  config: Readonly<Record<string, unknown>>,
  keys: readonly string[],
  source: string,
): void {
  for (const key of keys) {
    if (config[key]) throw new TypeError(`${source}: ${key} is not built, so it must be false`);
  }
}

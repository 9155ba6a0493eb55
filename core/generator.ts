/**
 * The state of random numbers: a seed and a counter. The numbers themselves come from the counter on
 * the device, so the same state gives the same numbers on every backend.
 *
 * @module
 */

/** What a generator continues from. */
export interface GeneratorState {
  /** The seed. */
  readonly seed: number;
  /** Draws taken so far. */
  readonly counter: number;
}

/** A stream of random draws; each draw of a tensor takes one count. */
export class Generator {
  #seed: number;
  #counter = 0;

  /** Throws where `seed` is no whole number in [0, 2⁵³). */
  constructor(seed: number) {
    this.#seed = checkSeed(seed);
  }

  /** The two 32-bit halves of the seed, and the count of this draw. */
  next(): { key0: number; key1: number; counter: number } {
    return {
      key0: this.#seed >>> 0,
      key1: Math.floor(this.#seed / 2 ** 32) >>> 0,
      counter: this.#counter++,
    };
  }

  /** Where the stream stands. */
  state(): GeneratorState {
    return { seed: this.#seed, counter: this.#counter };
  }

  /** Goes on from a state. */
  load(state: GeneratorState): void {
    this.#seed = checkSeed(state.seed);
    if (!Number.isInteger(state.counter) || state.counter < 0) {
      throw new RangeError(`Generator: a counter is a whole number, got ${state.counter}`);
    }
    this.#counter = state.counter;
  }
}

function checkSeed(seed: number): number {
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new RangeError(`Generator: a seed is a whole number in [0, 2^53), got ${seed}`);
  }
  return seed;
}

let standard: Generator | null = null;

/** The generator used where none is given. It starts at seed 0. */
export function defaultGenerator(): Generator {
  return standard ??= new Generator(0);
}

/** Starts the default generator anew. */
export function manualSeed(seed: number): void {
  defaultGenerator().load({ seed, counter: 0 });
}

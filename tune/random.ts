/**
 * Random numbers of a study. Each trial has a stream of its own, made from the study's seed and the
 * trial's number alone: so a study that was resumed draws what an unbroken one would have drawn.
 *
 * @module
 */

/**
 * A stream of random numbers: sfc32 (Doty-Humphrey's PractRand), 128 bits of state.
 *
 * @example
 * ```ts
 * import { Random } from "@graft/ml/tune";
 *
 * const random = new Random(7);
 * console.log(random.next() < 1, random.integer(6) < 6); // true true
 * ```
 */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #count = 1;

  /**
   * A stream.
   *
   * @param seed a whole number.
   * @param stream which of the seed's streams, a whole number.
   */
  constructor(seed: number, stream = 0) {
    // 53 bits of seed in two words.
    this.#a = seed | 0;
    this.#b = Math.floor(seed / 2 ** 32) | 0;
    this.#c = stream | 0;
    // Neighbouring seeds and streams are alike until mixed; the author of sfc32 asks for 15 rounds.
    for (let i = 0; i < 20; i++) this.#word();
  }

  #word(): number {
    const out = (((this.#a + this.#b) | 0) + this.#count) | 0;
    this.#count = (this.#count + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + out | 0;
    return out >>> 0;
  }

  /** A number in [0, 1), with 53 random bits. */
  next(): number {
    return ((this.#word() >>> 5) * 2 ** 26 + (this.#word() >>> 6)) / 2 ** 53;
  }

  /** A whole number in [0, n). */
  integer(n: number): number {
    return Math.floor(this.next() * n);
  }

  /** A normal number of mean 0 and variance 1, by Box and Muller. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.next())) * Math.cos(2 * Math.PI * this.next());
  }

  /** An index, each as likely as its weight says; the weights need not sum to 1. */
  weighted(weights: ArrayLike<number>): number {
    let total = 0;
    for (let i = 0; i < weights.length; i++) total += weights[i];
    let left = this.next() * total;
    for (let i = 0; i < weights.length; i++) {
      left -= weights[i];
      if (left < 0) return i;
    }
    return weights.length - 1;
  }
}

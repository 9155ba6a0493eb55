/**
 * Orders that need no memory.
 *
 * @module
 */

/**
 * Where `index` goes in a permutation of `length` places that depends on seed and round: a Feistel
 * network over the next even number of bits, walked until it falls inside. Needs no memory.
 */
export function permute(index: number, length: number, seed: number, round: number): number {
  let half = 1;
  while (4 ** half < length) half++;
  const mask = 2 ** half - 1;
  const key = hash(hash(seed | 0, Math.floor(seed / 2 ** 32) | 0), round);
  let value = index;
  do {
    let left = Math.floor(value / 2 ** half), right = value & mask;
    for (let i = 0; i < 6; i++) {
      [left, right] = [right, (left ^ hash(key + Math.imul(i, 0x9e3779b9), right)) & mask];
    }
    value = left * 2 ** half + right;
  } while (value >= length);
  return value;
}

/** Mixes two integers into one of 32 bits. */
function hash(a: number, b: number): number {
  let x = Math.imul(a ^ 0x2545f491, 0x85ebca6b) ^ Math.imul(b + 0x165667b1, 0xc2b2ae35);
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return x ^ (x >>> 16);
}

import { show, sizeOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";

/**
 * Einstein summation with an explicit output, `einsum("bij,bjk->bik", a, b)`: products of the operands
 * summed over the letters that the output does not name. Two at a time, as matrix products.
 *
 * Throws on a malformed equation, a letter repeated in one operand, or sizes that differ.
 */
export function einsum(equation: string, ...operands: Tensor[]): Tensor {
  const match = /^([a-zA-Z]*(?:,[a-zA-Z]*)*)->([a-zA-Z]*)$/.exec(equation.replaceAll(" ", ""));
  if (!match) {
    throw new SyntaxError(`einsum: needs an equation like "ij,jk->ik", got "${equation}"`);
  }
  const terms = match[1].split(",");
  const output = match[2];
  if (terms.length !== operands.length) {
    throw new RangeError(
      `einsum: "${equation}" names ${terms.length} operands, got ${operands.length}`,
    );
  }
  const sizes = new Map<string, number>();
  terms.forEach((term, i) => {
    const { shape } = operands[i];
    if (term.length !== shape.length || new Set(term).size !== term.length) {
      throw new RangeError(`einsum: "${term}" must name each dimension of ${show(shape)} once`);
    }
    [...term].forEach((letter, d) => {
      const known = sizes.get(letter);
      if (known !== undefined && known !== shape[d]) {
        throw new RangeError(`einsum: "${letter}" has size ${known} and ${shape[d]}`);
      }
      sizes.set(letter, shape[d]);
    });
  });
  for (const letter of output) {
    if (!sizes.has(letter) || output.indexOf(letter) !== output.lastIndexOf(letter)) {
      throw new RangeError(
        `einsum: output "${output}" must name letters of the operands once each`,
      );
    }
  }
  let term = terms[0];
  let value = operands[0];
  for (let i = 1; i < terms.length; i++) {
    const later = terms.slice(i + 1).join("") + output;
    [term, value] = pair(term, value, terms[i], operands[i], later, sizes);
  }
  [term, value] = sumAway(term, value, output);
  return value.permute([...output].map((letter) => term.indexOf(letter)));
}

/** Sums over the letters of `term` that nobody else names. */
function sumAway(term: string, value: Tensor, wanted: string): [string, Tensor] {
  const gone = [...term].map((_, d) => d).filter((d) => !wanted.includes(term[d]));
  if (gone.length === 0) return [term, value];
  return [[...term].filter((l) => wanted.includes(l)).join(""), value.sum(gone)];
}

function pair(
  a: string,
  x: Tensor,
  b: string,
  y: Tensor,
  later: string,
  sizes: ReadonlyMap<string, number>,
): [string, Tensor] {
  [a, x] = sumAway(a, x, b + later);
  [b, y] = sumAway(b, y, a + later);
  const both = [...a].filter((l) => b.includes(l));
  const batch = both.filter((l) => later.includes(l));
  const inner = both.filter((l) => !later.includes(l));
  const left = [...a].filter((l) => !b.includes(l));
  const right = [...b].filter((l) => !a.includes(l));
  const size = (letters: string[]): number => sizeOf(letters.map((l) => sizes.get(l)!));
  const groups = (term: string, t: Tensor, ...parts: string[][]): Tensor =>
    t.permute(parts.flat().map((l) => term.indexOf(l))).reshape(parts.map(size));
  const product = groups(a, x, batch, left, inner).matmul(groups(b, y, batch, inner, right));
  const letters = [...batch, ...left, ...right];
  return [letters.join(""), product.reshape(letters.map((l) => sizes.get(l)!))];
}

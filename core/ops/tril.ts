import { show } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { iota } from "./iota.ts";
import { where } from "./where.ts";

/** Zero above diagonal `k` of the last two dimensions. */
export function tril(x: Tensor, k = 0): Tensor {
  const [rows, columns] = places("tril", x);
  return where(columns.sub(rows).le(k), x, 0);
}

/** Zero below diagonal `k` of the last two dimensions. */
export function triu(x: Tensor, k = 0): Tensor {
  const [rows, columns] = places("triu", x);
  return where(columns.sub(rows).ge(k), x, 0);
}

function places(what: string, x: Tensor): [Tensor, Tensor] {
  if (x.rank < 2) throw new RangeError(`${what}: needs a matrix, got shape ${show(x.shape)}`);
  const shape = x.shape.slice(-2);
  return [iota(shape, 0, "i32", x.device), iota(shape, 1, "i32", x.device)];
}

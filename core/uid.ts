// Hoisted and without an initial value: modules in an import cycle call nextUid() before this one runs.
// deno-lint-ignore no-var
var last: number | undefined;

/** A number not given out before. */
export function nextUid(): number {
  return last = (last ?? 0) + 1;
}

/**
 * One side of the comparison in a process of its own: it takes the step whose number stands on each
 * line of its input, and answers with the loss and the time.
 *
 * @module
 */

import { lines } from "./lines.ts";
import type { Method, Side } from "./spec.ts";

/** What a side says first. */
export interface Opened {
  readonly name: string;
  /** Milliseconds to load the library and make the model. */
  readonly ms: number;
}

/** What a side says of each step. */
export interface Taken {
  readonly loss: number;
  readonly ms: number;
}

async function open(side: string, method: Method): Promise<Side> {
  switch (side) {
    case "graft":
      return await (await import("./graft.ts")).graft(method);
    case "jax-js":
      return await (await import("./jax_js.ts")).jaxJs(method);
    default:
      throw new Error(`small_gpt/child.ts: no side "${side}"`);
  }
}

if (import.meta.main) {
  const say = (what: Opened | Taken): void => console.log(JSON.stringify(what));
  const [name, method] = Deno.args;
  const before = performance.now();
  const side = await open(name, method as Method);
  say({ name: side.name, ms: performance.now() - before });
  for await (const line of lines(Deno.stdin.readable)) {
    const start = performance.now();
    const loss = await side.step(Number(line));
    say({ loss, ms: performance.now() - start });
  }
  // Workers of a library would keep the process alive.
  Deno.exit(0);
}

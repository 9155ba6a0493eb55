/**
 * A side in a process of its own: it does what each line of its input asks for, and answers with a
 * line of JSON.
 *
 * @module
 */

import type { Case } from "../cases.ts";
import { lines } from "./lines.ts";
import type { Side, Work } from "./work.ts";

/** What the driver asks. `data` is a folder that a case needs. */
export type Request =
  | { readonly ask: "open"; readonly case: Case; readonly data: string | null }
  | { readonly ask: "run"; readonly times: number }
  | { readonly ask: "value" };

/** What a side answers. First of all it says its name. */
export interface Reply {
  readonly name?: string;
  /** Whether it has code for the case. */
  readonly has?: boolean;
  /** Milliseconds to open, or of one run. */
  readonly ms?: number;
  readonly value?: readonly number[];
  /** Milliseconds of a run that the host took, where the side tells them; see {@linkcode Work}. */
  readonly host?: number;
  readonly error?: string;
}

async function answer(side: Side, request: Request, opened: { work: Work | null }): Promise<Reply> {
  const start = performance.now();
  const ms = (): number => performance.now() - start;
  if (request.ask === "open") {
    opened.work?.close?.();
    opened.work = null;
    opened.work = await side.open(request.case, request.data);
    return { has: opened.work !== null, ms: ms() };
  }
  const work = opened.work!;
  if (request.ask === "value") return { value: await work.value(), host: work.host?.() };
  for (let i = 0; i < request.times; i++) await work.run();
  await work.sync?.();
  return { ms: ms() / request.times };
}

/** Serves until the input ends, and then ends the process: a library's workers would keep it alive. */
export async function serve(side: Side): Promise<never> {
  const say = (reply: Reply): void => console.log(JSON.stringify(reply));
  say({ name: side.name });
  const opened: { work: Work | null } = { work: null };
  for await (const line of lines(Deno.stdin.readable)) {
    try {
      say(await answer(side, JSON.parse(line), opened));
    } catch (error) {
      say({ error: error instanceof Error ? error.message.split("\n")[0] : String(error) });
    }
  }
  Deno.exit(0);
}

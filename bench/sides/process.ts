/**
 * A side as the driver sees it: a process that is asked line by line.
 *
 * @module
 */

import { lines } from "./lines.ts";
import type { Reply, Request } from "./serve.ts";

/** How to start a side. */
export interface Launch {
  /** Short, for progress. */
  readonly label: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** Longest that a side may take over one answer, in milliseconds. */
const PATIENCE = 240_000;

const path = (relative: string): string => new URL(relative, import.meta.url).pathname;

/** New objects stay young: docs/performance.md says why. */
const RUN: readonly string[] = [
  "run",
  "-A",
  "--quiet",
  "--v8-flags=--no-allocation-site-pretenuring",
];

const peer = (file: string, device: string, threads: number): readonly string[] => [
  ...RUN,
  "--config",
  path("../peers/deno.json"),
  path(`../peers/${file}`),
  device,
  `${threads}`,
];

/** V8's flags for pairs of vectors: see docs/performance.md. */
const PAIRS = "--experimental-wasm-revectorize,--no-wasm-bounds-checks";

/**
 * The sides for a device: graft first, and on the cpu once more with vectors in pairs. PyTorch's are
 * named by their interpreters.
 */
export function launches(
  device: "cpu" | "webgpu",
  threads: number,
  pythons: readonly string[],
): Launch[] {
  const deno = Deno.execPath();
  const wasm = device === "cpu" ? "wasm" : "webgpu";
  const graft = [...RUN, path("./graft.ts"), device, `${threads}`];
  return [
    { label: "graft", command: deno, args: graft },
    ...(device === "cpu"
      ? [{ label: "graft in pairs", command: deno, args: graft, env: { DENO_V8_FLAGS: PAIRS } }]
      : []),
    { label: "jax-js", command: deno, args: peer("jax_js.ts", wasm, threads) },
    { label: "tfjs", command: deno, args: peer("tfjs.ts", wasm, threads) },
    ...(device === "cpu" ? pythons : []).map((command): Launch => ({
      label: `PyTorch (${command})`,
      command,
      args: [path("../peers/pytorch.py"), `${threads}`],
    })),
  ];
}

/** A running side. */
export class SideProcess {
  readonly name: string;
  readonly #process: Deno.ChildProcess;
  readonly #in: WritableStreamDefaultWriter<Uint8Array>;
  readonly #out: AsyncGenerator<string>;
  readonly #shaders: string;

  private constructor(
    name: string,
    process: Deno.ChildProcess,
    out: AsyncGenerator<string>,
    shaders: string,
  ) {
    this.name = name;
    this.#shaders = shaders;
    this.#process = process;
    this.#in = process.stdin.getWriter();
    this.#out = out;
  }

  /** Starts a side; throws the last lines of what it said where it does not get ready. */
  static async start({ label, command, args, env }: Launch): Promise<SideProcess> {
    const shaders = await Deno.makeTempDir({ prefix: "graft-bench-shaders-" });
    const process = new Deno.Command(command, {
      args: [...args],
      stdin: "piped",
      stdout: "piped",
      stderr: "null",
      // A driver's cache would hand one side, and not another, shaders compiled on an earlier day.
      env: { PYTHONDONTWRITEBYTECODE: "1", MESA_SHADER_CACHE_DIR: shaders, ...env },
    }).spawn();
    const out = lines(process.stdout);
    const { name } = await answer(out, label, process);
    return new SideProcess(name!, process, out, shaders);
  }

  /** Asks, and waits for the answer. Throws where the side failed, with its message. */
  async ask(request: Request): Promise<Reply> {
    await this.#in.write(new TextEncoder().encode(`${JSON.stringify(request)}\n`));
    const reply = await answer(this.#out, this.name, this.#process);
    if (reply.error !== undefined) throw new Error(reply.error);
    return reply;
  }

  /** Ends the process. */
  async close(): Promise<void> {
    await this.#in.close().catch(() => {});
    await this.#process.status;
    await Deno.remove(this.#shaders, { recursive: true }).catch(() => {});
  }
}

/** The next line that is an answer: libraries print lines of their own. */
async function answer(
  out: AsyncGenerator<string>,
  name: string,
  process: Deno.ChildProcess,
): Promise<Reply> {
  const timer = setTimeout(() => process.kill("SIGKILL"), PATIENCE);
  try {
    for (;;) {
      const { done, value } = await out.next();
      if (done) throw new Error(`${name}: its process ended, or took over ${PATIENCE / 1000} s`);
      if (value.startsWith("{")) return JSON.parse(value);
    }
  } finally {
    clearTimeout(timer);
  }
}

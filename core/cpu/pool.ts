/**
 * The threads: the caller's, and workers that help it.
 *
 * @module
 */

import type { Memory } from "./memory.ts";
import { CONTROL, MESSAGE, RAN, schedulerModule, STAGE } from "./scheduler.ts";
import { loadFunctions, workerMain, type WorkerMessage } from "./worker.ts";

/** One worker, whichever kind of it the runtime has. */
interface Helper {
  post(message: WorkerMessage): void;
  end(): void;
}

/** The part of node:worker_threads that is used here. */
interface NodeWorkers {
  Worker: new (code: string, options: { eval: true }) => {
    unref(): void;
    postMessage(message: unknown): void;
    terminate(): Promise<unknown>;
    on(event: "error", handler: (error: unknown) => void): void;
  };
}

/**
 * `node:worker_threads`, where the runtime has it (Deno and Node have): its workers can be told not to
 * keep the process alive, so a program that never closes its device still ends.
 */
function nodeWorkers(): NodeWorkers | null {
  const { process } = globalThis as unknown as {
    process?: { getBuiltinModule?: (name: string) => unknown };
  };
  return (process?.getBuiltinModule?.("node:worker_threads") ?? null) as NodeWorkers | null;
}

/** Whether other threads can share memory with this one here. */
export function canShare(): boolean {
  if (typeof SharedArrayBuffer === "undefined") return false;
  const { crossOriginIsolated } = globalThis as { crossOriginIsolated?: boolean };
  return nodeWorkers() !== null ||
    (typeof Worker !== "undefined" && typeof Blob !== "undefined" && crossOriginIsolated === true);
}

function startHelper(failed: (error: unknown) => void): Helper {
  const code = (receive: string) => `(${workerMain})(${receive}, ${loadFunctions});`;
  const node = nodeWorkers();
  if (node) {
    const receive = `(h) => require("node:worker_threads").parentPort.on("message", h)`;
    const worker = new node.Worker(code(receive), { eval: true });
    worker.on("error", failed);
    worker.unref();
    return {
      post: (message) => worker.postMessage(message),
      end: () => void worker.terminate(),
    };
  }
  const receive = `(h) => { self.onmessage = (e) => h(e.data); }`;
  const url = URL.createObjectURL(new Blob([code(receive)], { type: "text/javascript" }));
  const worker = new Worker(url, { type: "module" });
  worker.onerror = (event) => failed(event.message);
  return {
    post: (message) => worker.postMessage(message),
    end: () => {
      worker.terminate();
      URL.revokeObjectURL(url);
    },
  };
}

/** Threads over one memory. */
export class Pool {
  readonly threads: number;
  readonly #memory: Memory;
  readonly #table: WebAssembly.Table;
  readonly #run: (list: number, count: number) => number;
  readonly #helpers: Helper[] = [];
  #entries = 0;
  #scratch: number;
  #share = 0;
  #messages = 0;
  #lost: unknown = null;

  constructor(memory: Memory, threads: number) {
    this.#memory = memory;
    this.threads = memory.type.shared ? threads : 1;
    this.#table = new WebAssembly.Table({ initial: 1024, element: "anyfunc" });
    // A browser's main thread may not sleep.
    const mayBlock = memory.type.shared && nodeWorkers() !== null;
    const scheduler = new WebAssembly.Module(schedulerModule(memory.type, mayBlock));
    const instance = new WebAssembly.Instance(scheduler, {
      env: { memory: memory.memory, table: this.#table },
    });
    this.#run = instance.exports.run as (list: number, count: number) => number;
    this.#scratch = 0;
    for (let thread = 1; thread < this.threads; thread++) {
      this.#helpers.push(startHelper((error) => this.#lost = error));
      const start = {
        thread,
        memory: memory.memory,
        scheduler,
        control: CONTROL,
        messageLimit: MESSAGE,
      };
      this.#helpers[thread - 1].post({ start });
    }
    if (this.threads > 1) this.#countMessage();
  }

  /** Adds the functions "0", "1" and on of a module; the entry of the first. */
  load(module: WebAssembly.Module, count: number): number {
    const load = { module, entry: this.#entries, count };
    this.#entries += count;
    loadFunctions(this.#table, this.#memory.memory, load);
    this.#send({ load });
    return load.entry;
  }

  /** Sees to it that each thread has so many bytes of scratch. Not during a run. */
  reserve(bytes: number): void {
    const share = Math.ceil(bytes / 4096) * 4096;
    if (share <= this.#share) return;
    const scratch = this.#memory.allocate(share * this.threads);
    if (this.#scratch !== 0) this.#memory.free(this.#scratch);
    this.#scratch = scratch;
    this.#share = share;
    const words = this.#words();
    words[CONTROL.scratch / 4] = scratch;
    words[CONTROL.share / 4] = share;
  }

  /** Runs `count` stages that stand at `list`; `labelOf` names a stage's step for an error. */
  run(list: number, count: number, labelOf: (step: number) => string): void {
    if (this.#lost !== null) {
      throw new Error("cpu: a worker thread has died", { cause: this.#lost });
    }
    let state: number = RAN.failed;
    let cause: unknown;
    try {
      state = this.#run(list, count);
    } catch (error) {
      cause = error;
      this.#settle();
    }
    if (state === RAN.fine) return;
    const words = this.#words();
    const at = words[CONTROL.at / 4] >>> 0;
    const where = labelOf(words[at / 4 + STAGE.step]);
    if (state === RAN.lost) throw new Error(`${where}: a worker thread does not answer`);
    if (cause === undefined) {
      const length = words[CONTROL.messageBytes / 4];
      cause = new TextDecoder().decode(this.#memory.read(CONTROL.message, length));
      Atomics.store(words, CONTROL.failed / 4, 0);
    }
    throw new Error(`${where}: the kernel failed on the cpu: ${cause}`, { cause });
  }

  /** Ends the workers. */
  close(): void {
    this.#send({ stop: true });
    for (const helper of this.#helpers) helper.end();
    this.#helpers.length = 0;
  }

  #words(): Int32Array {
    return new Int32Array(this.#memory.buffer);
  }

  /** After a failure on this thread: takes the open stage's units away and lets the others finish. */
  #settle(): void {
    const words = this.#words();
    const stage = words[CONTROL.at / 4] >>> 0;
    if (words[stage / 4 + STAGE.parallel] === 0) return;
    // The low half of the ticket, little end first, holds the units left.
    const left = Atomics.exchange(words, CONTROL.ticket / 4, 0);
    const taken = words[stage / 4 + STAGE.units] - left;
    const deadline = performance.now() + 60000;
    while (Atomics.load(words, CONTROL.done / 4) < taken - 1 && performance.now() < deadline);
    Atomics.store(words, CONTROL.failed / 4, 0);
  }

  #send(message: WorkerMessage): void {
    if (this.#helpers.length === 0) return;
    for (const helper of this.#helpers) helper.post(message);
    this.#countMessage();
  }

  #countMessage(): void {
    const words = this.#words();
    this.#messages++;
    Atomics.store(words, CONTROL.messages / 4, this.#messages);
    Atomics.add(words, CONTROL.wake / 4, 1);
    Atomics.notify(words, CONTROL.wake / 4);
  }
}

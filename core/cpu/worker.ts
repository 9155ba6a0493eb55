/**
 * What a worker thread does. The function stands alone: it is handed to the worker as text, so that
 * the library is free of files that would have to be found at run time.
 *
 * @module
 */

/** What a worker is sent. */
export interface WorkerMessage {
  /** With the first message. */
  readonly start?: {
    readonly thread: number;
    readonly memory: WebAssembly.Memory;
    readonly scheduler: WebAssembly.Module;
    /** Addresses of {@linkcode CONTROL}. */
    readonly control: Readonly<Record<string, number>>;
    readonly messageLimit: number;
  };
  /** Functions to put into the table from `entry` on: exports "0", "1", and on of the module. */
  readonly load?: {
    readonly module: WebAssembly.Module;
    readonly entry: number;
    readonly count: number;
  };
  readonly stop?: boolean;
}

/** Installs the functions of a module. */
export function loadFunctions(
  table: WebAssembly.Table,
  memory: WebAssembly.Memory,
  load: NonNullable<WorkerMessage["load"]>,
): void {
  const { exports } = new WebAssembly.Instance(load.module, { env: { memory } });
  const need = load.entry + load.count;
  if (need > table.length) table.grow(Math.max(need - table.length, 1024));
  for (let i = 0; i < load.count; i++) table.set(load.entry + i, exports[i] as () => void);
}

/** A worker: takes messages by `receive`, and works in between. */
export function workerMain(
  receive: (handler: (message: WorkerMessage) => void) => void,
  install: typeof loadFunctions,
): void {
  const table = new WebAssembly.Table({ initial: 1024, element: "anyfunc" });
  let start: WorkerMessage["start"];
  let work: (thread: number, seen: number) => void;
  let seen = 0;
  let stopped = false;
  receive((message) => {
    seen++;
    if (message.stop) stopped = true;
    if (message.start) {
      start = message.start;
      const imports = { env: { memory: start.memory, table } };
      const instance = new WebAssembly.Instance(start.scheduler, imports);
      work = instance.exports.work as (thread: number, seen: number) => void;
    }
    const { thread, memory, control, messageLimit } = start!;
    const fail = (error: unknown, at: number) => {
      const text = new TextEncoder().encode(String(error)).slice(0, messageLimit);
      new Uint8Array(memory.buffer, control.message, text.length).set(text);
      const words = new Int32Array(memory.buffer);
      Atomics.store(words, control.messageBytes / 4, text.length);
      Atomics.store(words, control.failed / 4, at);
    };
    if (message.load) {
      try {
        install(table, memory, message.load);
      } catch (error) {
        fail(error, -1);
      }
    }
    while (!stopped) {
      try {
        work(thread, seen);
        return;
      } catch (error) {
        // The unit counts as done; the main thread finds out when the stage is over.
        const words = new Int32Array(memory.buffer);
        fail(error, Atomics.load(words, control.stage / 4));
        Atomics.add(words, control.done / 4, 1);
        Atomics.notify(words, control.done / 4);
      }
    }
  });
}

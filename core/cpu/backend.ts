/**
 * The cpu backend: kernels assembled to WASM SIMD, run by a pool of threads over one shared memory.
 *
 * @module
 */

import { type CompiledKernel, Compiler } from "./compile.ts";
import { Memory } from "./memory.ts";
import { canShare, Pool } from "./pool.ts";
import { STAGE } from "./scheduler.ts";
import { storageBytes } from "../dtype.ts";
import type {
  Backend,
  BackendCounters,
  Buffer,
  Kernel,
  Program,
  Results,
  Run,
  Step,
} from "../kernel.ts";
import { yieldToEvents } from "../turn.ts";
import { f32x4, v128, validates, type WasmTarget } from "../wasm.ts";

/** Options of {@linkcode createCpuBackend}. */
export interface CpuOptions {
  /** Threads that compute, the caller's among them. Default: one for each core. */
  readonly threads?: number;
}

/** A stage that takes less, in nanoseconds, runs on the main thread alone. */
const PARALLEL = 15000;
/** A stage that takes less wakes no thread that has gone to sleep. */
const WAKE = 40000;

/** A block of the backend's memory. */
class CpuBuffer implements Buffer {
  readonly bytes: number;
  /** Zero once it is freed. */
  address: number;

  constructor(bytes: number, address: number) {
    this.bytes = bytes;
    this.address = address;
  }
}

/** Opens the cpu backend. */
// deno-lint-ignore require-await -- so that what it throws rejects.
export async function createCpuBackend(options: CpuOptions = {}): Promise<Backend> {
  const zero = v128.zero();
  if (!validates(f32x4.add(zero, zero))) {
    throw new Error("cpu: this runtime has no WASM SIMD, which the backend needs");
  }
  const relaxed = validates(f32x4.relaxed_madd(zero, zero, zero));
  const threads = Math.max(1, Math.floor(options.threads ?? defaultThreads()));
  return new CpuBackend({ threads, relaxed, columns: pairsVectors() ? 16 : 8 });
}

/** Flags by which V8 makes one vector of eight lanes of two: see docs/performance.md. */
const PAIRING = ["--experimental-wasm-revectorize", "--no-wasm-bounds-checks"];

/** Whether this process was started with those flags. */
function pairsVectors(): boolean {
  const flags = variable("DENO_V8_FLAGS") ?? "";
  return PAIRING.every((flag) => flags.split(",").includes(flag));
}

/** A variable of the environment, where there is one and it may be read. */
function variable(name: string): string | undefined {
  const { Deno } = globalThis as unknown as {
    Deno?: {
      env: { get(name: string): string | undefined };
      permissions: { querySync(what: { name: "env"; variable: string }): { state: string } };
    };
  };
  // Asking for leave to read the environment would stop the program with a prompt.
  const readable = Deno?.permissions.querySync({ name: "env", variable: name });
  return readable?.state === "granted" ? Deno!.env.get(name) : undefined;
}

/** GRAFT_THREADS, or the number of cores. */
function defaultThreads(): number {
  const { navigator } = globalThis as unknown as {
    navigator?: { hardwareConcurrency?: number };
  };
  const named = variable("GRAFT_THREADS");
  if (named !== undefined && named !== "") {
    const n = Number(named);
    if (Number.isInteger(n) && n > 0) return n;
    throw new Error(`GRAFT_THREADS: needs a whole number above 0; got "${named}"`);
  }
  return navigator?.hardwareConcurrency ?? 1;
}

class CpuBackend implements Backend {
  readonly name = "cpu";
  readonly description: string;
  readonly maxBindings = 64;
  readonly enqueues = false;
  readonly maxBytes: number;
  readonly #memory: Memory;
  readonly #pool: Pool;
  readonly #compiler: Compiler;
  #buffers = 0;
  #bindings = 0;
  #bytes = 0;
  #peak = 0;
  #closed = false;

  constructor(wanted: WasmTarget) {
    this.#memory = new Memory(wanted.threads > 1 && canShare());
    this.#pool = new Pool(this.#memory, wanted.threads);
    const target = { ...wanted, threads: this.#pool.threads };
    this.#compiler = new Compiler(this.#memory, this.#pool, target);
    this.maxBytes = this.#memory.limit;
    const n = this.#pool.threads;
    this.description = [
      `WASM SIMD${target.relaxed ? " with fused multiply-add" : ""}`,
      ...(target.columns === 16 ? ["vectors in pairs"] : []),
      `${n} thread${n === 1 ? "" : "s"}`,
    ].join(", ");
  }

  get counters(): BackendCounters {
    return {
      buffers: this.#buffers,
      pipelines: this.#compiler.functions,
      bindings: this.#bindings,
      bytes: this.#bytes,
      peakBytes: this.#peak,
    };
  }

  allocate(bytes: number): Buffer {
    this.#check("allocate");
    const size = storageBytes("u32", bytes / 4);
    const address = this.#memory.allocate(size);
    this.#buffers++;
    this.#bytes += size;
    this.#peak = Math.max(this.#peak, this.#bytes);
    return new CpuBuffer(size, address);
  }

  free(buffer: Buffer): void {
    const own = buffer as CpuBuffer;
    this.#memory.free(addressOf("free", own));
    own.address = 0;
    this.#bytes -= own.bytes;
  }

  write(buffer: Buffer, data: ArrayBufferView, byteOffset = 0): void {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    this.fill(buffer, byteOffset, bytes.length, (into) => into.set(bytes));
  }

  fill(
    buffer: Buffer,
    byteOffset: number,
    bytes: number,
    make: (into: Uint8Array<ArrayBufferLike>) => void,
  ): void {
    this.#check("write");
    const address = addressOf("write", buffer);
    if (byteOffset + bytes > buffer.bytes) {
      throw new Error(
        `write: ${bytes} bytes at ${byteOffset} do not fit a buffer of ${buffer.bytes}`,
      );
    }
    make(new Uint8Array(this.#memory.buffer, address + byteOffset, bytes));
  }

  read(buffer: Buffer, bytes: number, byteOffset = 0): Promise<ArrayBuffer> {
    try {
      this.#check("read");
      return Promise.resolve(this.#memory.read(addressOf("read", buffer) + byteOffset, bytes));
    } catch (error) {
      return Promise.reject(error);
    }
  }

  workspace(kernel: Kernel): number {
    const { workspace } = this.#compiler.plan(kernel);
    return workspace === 0 ? 0 : storageBytes("u32", workspace / 4);
  }

  program(steps: readonly Step[], scalarWords: number): Program {
    this.#check("program");
    const kernels = steps.map((step) => this.#compiler.plan(step.kernel));
    this.#compiler.compile(kernels);
    this.#pool.reserve(Math.max(0, ...kernels.map((k) => k.scratch)));
    this.#bindings += steps.length;
    return new CpuProgram(this.#memory, this.#pool, steps, kernels, scalarWords);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#pool.close();
  }

  #check(what: string): void {
    if (this.#closed) throw new Error(`${what}: the cpu backend is closed`);
  }
}

function addressOf(what: string, buffer: Buffer): number {
  if (!(buffer instanceof CpuBuffer)) {
    throw new Error(`${what}: the buffer belongs to another backend`);
  }
  if (buffer.address === 0) throw new Error(`${what}: the buffer has been freed`);
  return buffer.address;
}

/** Steps as stages in memory. */
class CpuProgram implements Program {
  readonly #memory: Memory;
  readonly #pool: Pool;
  readonly #steps: readonly Step[];
  readonly #block: number;
  readonly #list: number;
  readonly #stages: number;
  #disposed = false;

  constructor(
    memory: Memory,
    pool: Pool,
    steps: readonly Step[],
    kernels: readonly CompiledKernel[],
    scalarWords: number,
  ) {
    this.#memory = memory;
    this.#pool = pool;
    this.#steps = steps;
    this.#stages = kernels.reduce((n, k) => n + k.stages.length, 0);
    // One block: the scalars, the stages, the steps' addresses.
    const words: number[] = new Array<number>(Math.ceil(scalarWords / 8) * 8).fill(0);
    const list = words.length;
    for (let i = 0; i < this.#stages * STAGE.words; i++) words.push(0);
    const size = 4 * (words.length + steps.reduce(
      (n, s) => n + s.inputs.length + s.outputs.length + 2,
      0,
    ));
    this.#block = memory.allocate(size);
    this.#list = this.#block + 4 * list;
    let stage = list;
    steps.forEach((step, i) => {
      const args = this.#block + 4 * words.length;
      const label = step.kernel.label;
      words.push(
        ...step.inputs.map((b) => addressOf(label, b)),
        ...step.outputs.map((b) => addressOf(label, b)),
        step.workspace ? addressOf(label, step.workspace) : 0,
        this.#block + 4 * step.scalars,
      );
      if (kernels[i].workspace > 0 && step.workspace === null) {
        throw new Error(`${label}: needs a workspace of ${kernels[i].workspace} bytes; got none`);
      }
      for (const { entry, stage: { units, first = 0, cost } } of kernels[i].stages) {
        const parallel = pool.threads > 1 && units > 1 && cost >= PARALLEL;
        words[stage + STAGE.entry] = entry;
        words[stage + STAGE.args] = args;
        words[stage + STAGE.units] = units;
        words[stage + STAGE.first] = first;
        words[stage + STAGE.parallel] = parallel ? 1 : 0;
        words[stage + STAGE.wake] = cost >= WAKE ? 1 : 0;
        words[stage + STAGE.step] = i;
        stage += STAGE.words;
      }
    });
    memory.write(this.#block, Uint32Array.from(words));
  }

  async run(run: Run): Promise<Results> {
    if (this.#disposed) throw new Error("run: the program has been disposed of");
    const memory = this.#memory;
    for (const { buffer, data } of run.uploads) memory.write(addressOf("upload", buffer), data);
    memory.write(this.#block, run.scalars);
    this.#pool.run(this.#list, this.#stages, (step) => this.#steps[step].kernel.label);
    const results = run.results.map(({ buffer, bytes }) =>
      memory.read(addressOf("result", buffer), bytes)
    );
    await yieldToEvents();
    return { fetch: () => Promise.resolve(results) };
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#memory.free(this.#block);
  }
}

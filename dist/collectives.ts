/**
 * Order, checks and time limits: what is the same for every backend.
 *
 * @module
 */

import { CALL_BYTES, describeCall, hashOf, packCall, unpackCalls } from "./call.ts";
import type {
  AllReduceOptions,
  BroadcastOptions,
  CollectiveOptions,
  GroupOptions,
  ProcessGroup,
  Reducible,
  Transferable,
} from "./group.ts";
import type { Transport } from "./transport.ts";

/** What a caller that was busy gets after its time limit, to see what has come in meanwhile, in ms. */
const GRACE = 100;

const LONGEST_TIMER = 2 ** 31 - 1;

function defaultTimeout(): number {
  const seconds = Deno.env.get("GRAFT_DIST_TIMEOUT");
  if (seconds === undefined) return 600_000;
  if (!(Number(seconds) > 0)) {
    throw new Error(`GRAFT_DIST_TIMEOUT: needs a number of seconds above 0, got "${seconds}"`);
  }
  return Number(seconds) * 1000;
}

/** What every backend can join. */
const reducible = ["Float32Array", "Float64Array", "Int32Array", "Uint32Array", "Uint8Array"];

/** A typed array's bytes. */
function bytesOf(data: Transferable): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** A group on a transport. */
export class Collectives implements ProcessGroup {
  readonly backend: ProcessGroup["backend"];
  readonly rank: number;
  readonly size: number;
  readonly localRank: number;
  readonly localSize: number;
  readonly #transport: Transport;
  readonly #timeout: number;
  #last: Promise<unknown> = Promise.resolve();
  #calls = 0;
  #failure: Error | null = null;
  #closing: Promise<void> | null = null;

  constructor(transport: Transport, options: GroupOptions = {}) {
    this.#transport = transport;
    this.#timeout = options.timeout ?? defaultTimeout();
    if (!(this.#timeout > 0)) {
      const need = "timeout needs a number of ms above 0";
      throw new RangeError(`a process group: ${need}, got ${this.#timeout}`);
    }
    this.backend = transport.backend;
    this.rank = transport.rank;
    this.size = transport.size;
    this.localRank = transport.localRank;
    this.localSize = transport.localSize;
  }

  allReduce<T extends Reducible>(data: T, options: AllReduceOptions = {}): Promise<T> {
    const op = options.op ?? "sum";
    if (op !== "sum" && op !== "max") {
      return Promise.reject(new TypeError(`allReduce: op needs to be sum or max, got ${op}`));
    }
    const kind = Object(data)[Symbol.toStringTag];
    if (!reducible.includes(kind)) {
      const need = `needs one of ${reducible.join(", ")}`;
      return Promise.reject(new TypeError(`allReduce: ${need}, got ${kind ?? data}`));
    }
    const call = describeCall("allReduce", data, op, options.label);
    return this.#inTurn(call, options, async () => {
      if (data.length > 0) await this.#transport.allReduce(data, op);
      return data;
    });
  }

  broadcast<T extends Transferable>(data: T, options: BroadcastOptions = {}): Promise<T> {
    const root = options.root ?? 0;
    if (!(Number.isInteger(root) && root >= 0 && root < this.size)) {
      const need = `a root from 0 to ${this.size - 1}`;
      return Promise.reject(new Error(`broadcast: needs ${need}, got ${root}`));
    }
    const call = describeCall("broadcast", data, `from rank ${root}`, options.label);
    return this.#inTurn(call, options, async () => {
      if (data.length > 0) await this.#transport.broadcast(bytesOf(data), root);
      return data;
    });
  }

  allGather<T extends Transferable>(data: T, options: CollectiveOptions = {}): Promise<T[]> {
    const call = describeCall("allGather", data, "", options.label);
    return this.#inTurn(call, options, async () => {
      const all = new Uint8Array(data.byteLength * this.size); // rank by rank
      if (data.length > 0) await this.#transport.allGather(bytesOf(data), all);
      const { length, byteLength } = data;
      const make = data.constructor as new (b: ArrayBuffer, o: number, n: number) => T;
      return Array.from(
        { length: this.size },
        (_, rank) => new make(all.buffer, rank * byteLength, length),
      );
    });
  }

  allToAll<T extends Transferable>(data: T, options: CollectiveOptions = {}): Promise<T> {
    if (data.length % this.size !== 0) {
      return Promise.reject(
        new RangeError(`allToAll: needs ${this.size} parts of one length, got ${data.length}`),
      );
    }
    const call = describeCall("allToAll", data, "", options.label);
    return this.#inTurn(call, options, async () => {
      const all = new Uint8Array(data.byteLength);
      if (data.length > 0) await this.#transport.allToAll(bytesOf(data), all);
      const make = data.constructor as new (b: ArrayBuffer, o: number, n: number) => T;
      return new make(all.buffer, 0, data.length);
    });
  }

  barrier(options: CollectiveOptions = {}): Promise<void> {
    const call = describeCall("barrier", null, "", options.label);
    return this.#inTurn(call, options, () => Promise.resolve()); // to agree is to meet
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#last;
    if (this.#failure !== null) return; // it has been thrown already, and this rank leaves no half job
    await this.#inTurn("close", {}, () => this.#transport.close());
    this.#failure = new Error("the group is closed");
  }

  /** Runs a collective after those called before it. */
  #inTurn<T>(call: string, options: CollectiveOptions, work: () => Promise<T>): Promise<T> {
    if (this.#closing !== null && call !== "close") {
      return Promise.reject(new Error(`${call}: the group is closed`));
    }
    if (options.timeout !== undefined && !(options.timeout > 0)) {
      const got = `got ${options.timeout}`;
      return Promise.reject(
        new RangeError(`${call}: timeout needs a number of ms above 0, ${got}`),
      );
    }
    const turn = this.#last.then(async () => {
      if (this.#failure !== null) throw this.#failure;
      try {
        const timeout = options.timeout ?? this.#timeout;
        return await this.#watched(call, timeout, async () => {
          await this.#agree(call);
          return await work();
        });
      } catch (error) {
        this.#failure = error as Error;
        throw error;
      }
    });
    this.#last = turn.catch(() => {});
    return turn;
  }

  /** Throws on every rank where one of them calls something else. */
  async #agree(call: string): Promise<void> {
    const number = ++this.#calls;
    if (await this.#transport.agree(hashOf(`${number} ${call}`))) return;
    const all = new Uint8Array(CALL_BYTES * this.size);
    await this.#transport.allGather(packCall(`${call}, its call ${number}`), all);
    const calls = unpackCalls(all);
    const other = calls.findIndex((text) => text !== calls[0]);
    throw new Error(
      `dist: every rank must make the same calls in the same order, but rank 0 called ${
        calls[0]
      }, ` +
        `and rank ${other} called ${calls[other]} (this is rank ${this.rank})`,
    );
  }

  /** Ends the job if `work` takes longer than it may. */
  #watched<T>(call: string, timeout: number, work: () => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const started = performance.now();
      const bark = () => {
        const reason = this.#lateness(call, performance.now() - started);
        this.#transport.abort(reason);
        reject(new Error(reason));
      };
      // A timer that comes late, because this thread was busy, may come before the result that was
      // there in time: hence the second one. Both keep the event loop alive.
      let timer = setTimeout(() => {
        timer = setTimeout(bark, GRACE);
      }, Math.min(timeout, LONGEST_TIMER));
      work().then(resolve, reject).finally(() => clearTimeout(timer));
    });
  }

  #lateness(call: string, ms: number): string {
    const missing = this.#transport.missing?.() ?? [];
    const why = missing.length > 0
      ? `rank ${missing.join(" and rank ")} has not come`
      : "another rank has not come, or the network is cut";
    return `watchdog: rank ${this.rank} of ${this.size} has been in ${call}, its call ${this.#calls}, ` +
      `for ${
        Math.round(ms)
      } ms: ${why}; the job ends. If a rank may take longer, raise \`timeout\` ` +
      "or GRAFT_DIST_TIMEOUT";
  }
}

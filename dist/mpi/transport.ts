/**
 * Collectives of an MPI library, called through Deno's FFI.
 *
 * @module
 */

import type { ReduceOp, Reducible } from "../group.ts";
import { tellSupervisor } from "../notice.ts";
import type { Transport } from "../transport.ts";
import { type Abi, abiOf } from "./abi.ts";
import type { Launch } from "./environment.ts";
import { hangsAtTheEnd } from "./finalize.ts";
import { type MpiLibrary, openMpiLibrary } from "./library.ts";

/** The most elements of one call: MPI counts in 32 bits. */
const MOST = 2 ** 30;
/** How long MPI_Abort may take before the process ends without it, in ms. */
const ABORT_TIME = 2000;

/** Buffers that native code writes stand outside the heap that the collector moves things in. */
function numbers(length: number): Int32Array<ArrayBuffer> {
  return new Int32Array(new ArrayBuffer(length * 4));
}

/** This process as a rank of MPI_COMM_WORLD. */
export class MpiTransport implements Transport {
  readonly backend = "mpi";
  readonly rank: number;
  readonly size: number;
  readonly localRank: number;
  readonly localSize: number;
  readonly #library: MpiLibrary;
  readonly #abi: Abi;
  readonly #hashes = new Float64Array(new ArrayBuffer(16));
  #closed = false;
  #aborting = false;

  /**
   * Opens and starts MPI.
   *
   * @throws Error where there is no library, no permission for it, or it is not the launcher's.
   */
  constructor(launch: Launch | null) {
    this.#library = openMpiLibrary(launch?.launcher ?? null);
    const { symbols } = this.#library;
    this.#abi = abiOf(symbols);
    this.#start();
    const { world } = this.#abi;
    const found = numbers(1);
    this.#check("MPI_Comm_rank", symbols.MPI_Comm_rank(world, found));
    this.rank = found[0];
    this.#check("MPI_Comm_size", symbols.MPI_Comm_size(world, found));
    this.size = found[0];
    this.localRank = launch?.localRank ?? this.rank;
    this.localSize = launch?.localSize ?? this.size;
    this.#compare(launch);
    tellSupervisor("begins");
    // An exit with 0 while the others still work would leave half a job that looks well.
    globalThis.addEventListener("unload", () => {
      if (this.#aborting) this.#library.exitNow(1);
      if (this.#closed) tellSupervisor(`ends ${Deno.exitCode}`);
      else symbols.MPI_Abort(world, Deno.exitCode || 1);
    });
  }

  async agree(hash: number): Promise<boolean> {
    const hashes = this.#hashes;
    hashes[0] = hash;
    hashes[1] = -hash;
    await this.allReduce(hashes, "max"); // the largest, and minus the smallest
    return hashes[0] === -hashes[1];
  }

  async allReduce(data: Reducible, op: ReduceOp): Promise<void> {
    const { inPlace, types, ops, world } = this.#abi;
    for (let start = 0; start < data.length; start += MOST) {
      const part = data.subarray(start, start + MOST);
      const type = types[data[Symbol.toStringTag]];
      const code = await this.#library.symbols
        .MPI_Allreduce(inPlace, part as Uint8Array<ArrayBuffer>, part.length, type, ops[op], world);
      this.#check("MPI_Allreduce", code);
    }
  }

  async broadcast(bytes: Uint8Array, root: number): Promise<void> {
    for (let start = 0; start < bytes.length; start += MOST) {
      const part = bytes.subarray(start, start + MOST) as Uint8Array<ArrayBuffer>;
      const code = await this.#library.symbols
        .MPI_Bcast(part, part.length, this.#abi.byte, root, this.#abi.world);
      this.#check("MPI_Bcast", code);
    }
  }

  async allGather(mine: Uint8Array, all: Uint8Array): Promise<void> {
    const { length } = mine;
    if (length > MOST) { // more than one call counts: rank after rank
      all.set(mine, this.rank * length);
      for (let rank = 0; rank < this.size; rank++) {
        await this.broadcast(all.subarray(rank * length, (rank + 1) * length), rank);
      }
      return;
    }
    const { byte, world } = this.#abi;
    const [from, into] = [mine, all] as Uint8Array<ArrayBuffer>[];
    const code = await this.#library.symbols
      .MPI_Allgather(from, length, byte, into, length, byte, world);
    this.#check("MPI_Allgather", code);
  }

  async allToAll(mine: Uint8Array, all: Uint8Array): Promise<void> {
    const length = mine.length / this.size; // of a part
    if (length > MOST) {
      throw new RangeError(`allToAll: needs parts of at most ${MOST} bytes, got ${length}`);
    }
    const { byte, world } = this.#abi;
    const [from, into] = [mine, all] as Uint8Array<ArrayBuffer>[];
    const code = await this.#library.symbols
      .MPI_Alltoall(from, length, byte, into, length, byte, world);
    this.#check("MPI_Alltoall", code);
  }

  abort(reason: string): void {
    console.error(reason);
    tellSupervisor(`late: ${reason}`);
    this.#aborting = true;
    this.#library.symbols.abortElsewhere(this.#abi.world, 1);
    // Where the launcher cannot be reached any more, MPI_Abort may wait for it.
    setTimeout(() => this.#library.exitNow(1), ABORT_TIME);
  }

  close(): Promise<void> {
    this.#closed = true;
    // All ranks have said that they are done, so nothing is lost where MPI is left as it is: launchers
    // go by the exit code.
    const leave = this.localSize < this.size && hangsAtTheEnd(this.#version());
    if (!leave) this.#check("MPI_Finalize", this.#library.symbols.MPI_Finalize());
    return Promise.resolve();
  }

  #start(): void {
    const { symbols } = this.#library;
    const provided = numbers(1);
    symbols.MPI_Initialized(provided);
    if (provided[0] !== 0) {
      throw new Error("initProcessGroup: MPI starts once in a process: keep the first group");
    }
    const { serialized, world, errorsReturn } = this.#abi;
    this.#check("MPI_Init_thread", symbols.MPI_Init_thread(null, null, serialized, provided));
    if (provided[0] < serialized) {
      throw new Error(
        `initProcessGroup: needs an MPI that several threads may call, one at a time ` +
          `(MPI_THREAD_SERIALIZED, ${serialized}), got ${provided[0]} from ${this.#name()}`,
      );
    }
    this.#check("MPI_Comm_set_errhandler", symbols.MPI_Comm_set_errhandler(world, errorsReturn));
  }

  /** A library that is not the launcher's gives as many jobs of one rank, and says nothing. */
  #compare(launch: Launch | null): void {
    if (launch === null || launch.size === null || launch.size === this.size) return;
    throw new Error(
      `initProcessGroup: ${launch.launcher} started ${launch.size} processes, but the MPI library ` +
        `${this.#library.name} (${this.#name()}) knows of ${this.size}: it is not the launcher's. ` +
        "Start with the library's own mpiexec, or set GRAFT_MPI_LIBRARY to the path of the launcher's",
    );
  }

  /** The library's own name and version. */
  #name(): string {
    return this.#version().split(/[\n\0,]/)[0].trim();
  }

  #version(): string {
    const text = new Uint8Array(new ArrayBuffer(8192));
    const length = numbers(1);
    this.#library.symbols.MPI_Get_library_version(text, length);
    return new TextDecoder().decode(text.subarray(0, length[0]));
  }

  #check(name: string, code: number): void {
    if (code === 0) return;
    const text = new Uint8Array(new ArrayBuffer(1024));
    const length = numbers(1);
    this.#library.symbols.MPI_Error_string(code, text, length);
    const reason = new TextDecoder().decode(text.subarray(0, length[0]));
    throw new Error(`dist: ${name} failed on rank ${this.rank ?? "?"} with ${code}: ${reason}`);
  }
}

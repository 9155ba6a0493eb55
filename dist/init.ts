/**
 * From the environment to a group.
 *
 * @module
 */

import { Collectives } from "./collectives.ts";
import type { GroupOptions, ProcessGroup } from "./group.ts";
import { type LocalRank, localRank } from "./local/context.ts";
import { LocalTransport } from "./local/transport.ts";
import { readLaunch } from "./mpi/environment.ts";
import { MpiTransport } from "./mpi/transport.ts";
import { singleGroup } from "./single.ts";

/** Options of `initProcessGroup`. */
export interface InitOptions extends GroupOptions {
  /**
   * `auto` (the default, or the environment's `GRAFT_DIST`): `local` in a thread of `runLocal`; `mpi`
   * under `mpiexec`, `mpirun` or `srun`; else `single`.
   */
  readonly backend?: "auto" | "mpi" | "local" | "single";
}

function chosen(options: InitOptions): NonNullable<InitOptions["backend"]> {
  const name = options.backend ?? Deno.env.get("GRAFT_DIST") ?? "auto";
  if (name === "auto" || name === "mpi" || name === "local" || name === "single") return name;
  throw new Error(`initProcessGroup: GRAFT_DIST needs auto, mpi, local or single, got "${name}"`);
}

function localGroup(place: LocalRank, options: GroupOptions): ProcessGroup {
  if (place.open) {
    throw new Error("initProcessGroup: this rank has a group already: keep the first");
  }
  place.open = true;
  const closed = () => place.open = false;
  return new Collectives(new LocalTransport(place.memory, place.rank, closed), options);
}

/**
 * The group of this process or thread: as one of several where a launcher started it so, else a group
 * of one. Call it once, before anything that takes long.
 *
 * Under MPI it needs `--allow-ffi` and `--allow-env`.
 *
 * @throws Error without those permissions, where no MPI library is found, and where the library is not
 * that of the launcher.
 *
 * @example
 * ```ts
 * import { initProcessGroup } from "@graft/ml/dist";
 *
 * await using group = await initProcessGroup();
 * const [count] = await group.allReduce(Float64Array.of(1));
 * if (group.rank === 0) console.log(`${count} of ${group.size} ranks are here`);
 * ```
 */
export async function initProcessGroup(options: InitOptions = {}): Promise<ProcessGroup> {
  const backend = chosen(options);
  const local = localRank();
  if (backend === "local" || (backend === "auto" && local !== null)) {
    if (local === null) {
      throw new Error("initProcessGroup: local is for threads that runLocal started, got none");
    }
    return localGroup(local, options);
  }
  const launch = readLaunch(Deno.env.get);
  if (backend === "mpi" || (backend === "auto" && launch !== null)) {
    const group = new Collectives(new MpiTransport(launch), options);
    await group.barrier({ label: "initProcessGroup" });
    return group;
  }
  return singleGroup(options);
}

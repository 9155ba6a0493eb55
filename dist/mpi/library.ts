/**
 * Finding the MPI library of this machine, and opening it for the life of the process.
 *
 * @module
 */

import type { Launch } from "./environment.ts";

/** The functions of MPI that are used here; handles pass as 64 bits, whatever they are inside. */
const definitions = {
  MPI_Init_thread: { parameters: ["pointer", "pointer", "i32", "buffer"], result: "i32" },
  MPI_Initialized: { parameters: ["buffer"], result: "i32" },
  MPI_Comm_rank: { parameters: ["u64", "buffer"], result: "i32" },
  MPI_Comm_size: { parameters: ["u64", "buffer"], result: "i32" },
  MPI_Comm_set_errhandler: { parameters: ["u64", "u64"], result: "i32" },
  MPI_Get_library_version: { parameters: ["buffer", "buffer"], result: "i32" },
  MPI_Error_string: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  MPI_Abi_get_version: { parameters: ["buffer", "buffer"], result: "i32", optional: true },
  // Nonblocking: on a thread of Deno's, while this one goes on.
  MPI_Allreduce: {
    parameters: ["u64", "buffer", "i32", "u64", "u64", "u64"],
    result: "i32",
    nonblocking: true,
  },
  MPI_Bcast: {
    parameters: ["buffer", "i32", "u64", "i32", "u64"],
    result: "i32",
    nonblocking: true,
  },
  MPI_Allgather: {
    parameters: ["buffer", "i32", "u64", "buffer", "i32", "u64", "u64"],
    result: "i32",
    nonblocking: true,
  },
  MPI_Alltoall: {
    parameters: ["buffer", "i32", "u64", "buffer", "i32", "u64", "u64"],
    result: "i32",
    nonblocking: true,
  },
  MPI_Abort: { parameters: ["u64", "i32"], result: "i32" },
  abortElsewhere: {
    name: "MPI_Abort",
    parameters: ["u64", "i32"],
    result: "i32",
    nonblocking: true,
  },
  MPI_Finalize: { parameters: [], result: "i32" },
  ompi_mpi_comm_world: { type: "pointer", optional: true },
  ompi_mpi_errors_return: { type: "pointer", optional: true },
  ompi_mpi_byte: { type: "pointer", optional: true },
  ompi_mpi_float: { type: "pointer", optional: true },
  ompi_mpi_double: { type: "pointer", optional: true },
  ompi_mpi_int: { type: "pointer", optional: true },
  ompi_mpi_unsigned: { type: "pointer", optional: true },
  ompi_mpi_unsigned_char: { type: "pointer", optional: true },
  ompi_mpi_op_sum: { type: "pointer", optional: true },
  ompi_mpi_op_max: { type: "pointer", optional: true },
} as const;

/** What an open library offers. */
export type MpiSymbols = Deno.DynamicLibrary<typeof definitions>["symbols"];

/** An open MPI library. */
export interface MpiLibrary {
  /** The name it was found by. */
  readonly name: string;
  readonly symbols: MpiSymbols;
  /** Ends this process at once, running nothing on the way. */
  exitNow(code: number): void;
}

const openMpi = ["libmpi.so.40", "libmpi.so.80", "libmpi.40.dylib"];
const mpich = ["libmpich.so.12", "libmpi.so.12", "libmpi.12.dylib"];
const standard = ["libmpi_abi.so.0", "libmpi_abi.so.1", "libmpi_abi.0.dylib"];

/** Names to try, the launcher's own library first. */
function candidates(launcher: Launch["launcher"] | null): string[] {
  const given = Deno.env.get("GRAFT_MPI_LIBRARY");
  if (given !== undefined) return [given];
  const families = launcher === "MPICH" ? [mpich, standard, openMpi] : [openMpi, standard, mpich];
  const suffix = Deno.build.os === "darwin" ? ".dylib" : "";
  const fits = (name: string) => name.endsWith(".dylib") === (suffix !== "");
  return [...families.flat(), "libmpi.so", "libmpi.dylib"].filter(fits);
}

/** The part of the C library that is used here. */
function openLibc() {
  const mac = Deno.build.os === "darwin";
  const names = mac ? ["libSystem.dylib"] : ["libc.so.6", "libdl.so.2", "libc.so"];
  for (const name of names) {
    try {
      return Deno.dlopen(name, {
        dlopen: { parameters: ["buffer", "i32"], result: "pointer" },
        dlerror: { parameters: [], result: "pointer" },
        _exit: { parameters: ["i32"], result: "void" },
      }).symbols;
    } catch {
      // the next one may have them
    }
  }
  throw new Error(`initProcessGroup: needs dlopen of the C library, tried ${names.join(", ")}`);
}

const RTLD_NOW = 2;
const RTLD_GLOBAL = Deno.build.os === "darwin" ? 0x8 : 0x100;
const RTLD_NODELETE = Deno.build.os === "darwin" ? 0x80 : 0x1000;

/**
 * Opens the MPI library: `GRAFT_MPI_LIBRARY`, or the first of the known names, those of the launcher's
 * family first.
 *
 * @throws Error without the permission to call native code, and where no library is found.
 */
export function openMpiLibrary(launcher: Launch["launcher"] | null): MpiLibrary {
  if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") {
    throw new Error(
      "initProcessGroup: MPI is called as native code, which needs Deno's permission: " +
        "put --allow-ffi (or -A) after `deno run`",
    );
  }
  const libc = openLibc();
  const tried: string[] = [];
  for (const name of candidates(launcher)) {
    // Deno unloads libraries at exit, while MPI's own threads still run in this one, and opens them
    // without RTLD_GLOBAL, which Open MPI's components need. A library opened here first stays.
    const path = new TextEncoder().encode(`${name}\0`);
    if (libc.dlopen(path, RTLD_NOW | RTLD_GLOBAL | RTLD_NODELETE) === null) {
      const reason = libc.dlerror();
      tried.push(reason === null ? name : new Deno.UnsafePointerView(reason).getCString());
      continue;
    }
    return { name, symbols: Deno.dlopen(name, definitions).symbols, exitNow: libc._exit };
  }
  throw new Error(
    `initProcessGroup: needs the MPI library that ${launcher ?? "the launcher"} belongs to ` +
      "(on Debian `apt-get install mpich` or `openmpi-bin`); set GRAFT_MPI_LIBRARY to its path. " +
      `Tried: ${tried.join("; ")}`,
  );
}

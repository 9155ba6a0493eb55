/**
 * The numbers behind MPI's names, of which there are three sets: MPICH's (also Intel MPI, MVAPICH,
 * Cray), Open MPI's, which are addresses, and those of the standard ABI (MPI 5.0, chapter 20).
 *
 * @module
 */

import type { ReduceOp, Reducible } from "../group.ts";
import type { MpiSymbols } from "./library.ts";

/** The handles that are used here, as what a register holds. */
export interface Abi {
  readonly name: string;
  readonly world: bigint;
  readonly inPlace: bigint;
  readonly errorsReturn: bigint;
  readonly byte: bigint;
  readonly types: Record<Reducible[typeof Symbol.toStringTag], bigint>;
  readonly ops: Record<ReduceOp, bigint>;
  /** MPI_THREAD_SERIALIZED: several threads call, one at a time. */
  readonly serialized: number;
}

const mpich: Abi = {
  name: "MPICH's ABI",
  world: 0x44000000n,
  inPlace: 0xffff_ffff_ffff_ffffn, // -1
  errorsReturn: 0x54000001n,
  byte: 0x4c00010dn,
  types: {
    Float32Array: 0x4c00040an,
    Float64Array: 0x4c00080bn,
    Int32Array: 0x4c000405n,
    Uint32Array: 0x4c000406n,
    Uint8Array: 0x4c000102n,
  },
  ops: { max: 0x58000001n, sum: 0x58000003n },
  serialized: 2,
};

const standard: Abi = {
  name: "the standard ABI",
  world: 0x101n,
  inPlace: 1n,
  errorsReturn: 0x143n,
  byte: 0x247n,
  types: {
    Float32Array: 0x210n,
    Float64Array: 0x214n,
    Int32Array: 0x209n,
    Uint32Array: 0x20cn,
    Uint8Array: 0x245n,
  },
  ops: { sum: 0x21n, max: 0x23n },
  serialized: 2048,
};

/** Which of the sets a library uses. */
export function abiOf(symbols: MpiSymbols): Abi {
  if (symbols.MPI_Abi_get_version !== null) {
    const version = new Int32Array(new ArrayBuffer(8)); // major, minor; -1 where it has none
    symbols.MPI_Abi_get_version(version, version.subarray(1));
    if (version[0] > 0) return standard;
  }
  const address = (pointer: Deno.PointerValue | undefined) =>
    BigInt(Deno.UnsafePointer.value(pointer ?? null));
  if (!symbols.ompi_mpi_comm_world) return mpich;
  return {
    name: "Open MPI's ABI",
    world: address(symbols.ompi_mpi_comm_world),
    inPlace: 1n,
    errorsReturn: address(symbols.ompi_mpi_errors_return),
    byte: address(symbols.ompi_mpi_byte),
    types: {
      Float32Array: address(symbols.ompi_mpi_float),
      Float64Array: address(symbols.ompi_mpi_double),
      Int32Array: address(symbols.ompi_mpi_int),
      Uint32Array: address(symbols.ompi_mpi_unsigned),
      Uint8Array: address(symbols.ompi_mpi_unsigned_char),
    },
    ops: { sum: address(symbols.ompi_mpi_op_sum), max: address(symbols.ompi_mpi_op_max) },
    serialized: 2,
  };
}

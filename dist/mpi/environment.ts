/**
 * What a launcher tells its processes through the environment.
 *
 * @module
 */

/** Reads a variable of the environment. */
export type Environment = (name: string) => string | undefined;

/** What the launcher says of this process. */
export interface Launch {
  /** Whose variables were found. */
  readonly launcher: "Open MPI" | "MPICH" | "Slurm" | "PMIx";
  /** The number of processes; null where the launcher does not say. */
  readonly size: number | null;
  /** This process's number on its machine. */
  readonly localRank: number;
  /** The processes of this machine; null where the launcher does not say. */
  readonly localSize: number | null;
}

function first(env: Environment, names: readonly string[]): number | null {
  for (const name of names) {
    const text = env(name);
    if (text !== undefined && /^\d+/.test(text)) return parseInt(text);
  }
  return null;
}

/** Whose child this process is; null where nobody launched it as one of several. */
function launcherOf(env: Environment): Launch["launcher"] | null {
  if (env("OMPI_COMM_WORLD_SIZE") !== undefined) return "Open MPI";
  if (env("PMI_SIZE") !== undefined) return "MPICH";
  // A shell that salloc opened, and the script of sbatch, are no step of a job: only srun's are.
  if (env("SLURM_STEP_ID") !== undefined && env("SLURM_PROCID") !== undefined) return "Slurm";
  if (env("PMIX_RANK") !== undefined) return "PMIx";
  return null;
}

/**
 * Reads the environment of `mpiexec`, `mpirun` or `srun`; null where none of them started this process.
 */
export function readLaunch(env: Environment): Launch | null {
  const launcher = launcherOf(env);
  if (launcher === null) return null;
  const size = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];
  const localRank = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
  const localSize = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"];
  return {
    launcher,
    size: first(env, size),
    localRank: first(env, localRank) ?? 0,
    localSize: first(env, localSize),
  };
}

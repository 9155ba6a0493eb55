/**
 * Starts jobs of several processes under every MPI there is.
 *
 * @module
 */

const root = new URL("../../", import.meta.url).pathname;
const decoder = new TextDecoder();

/** A job that has not ended by then hangs. */
const HANG = 180_000;

/** A launcher of MPI jobs. */
export interface Launcher {
  readonly name: "mpich" | "openmpi";
  readonly program: string;
  /** What a run as root with more ranks than processors needs. */
  readonly args: readonly string[];
  /** A library that is not this launcher's. */
  readonly wrongLibrary: string;
}

/** How a job ended. */
export interface JobEnd {
  readonly code: number;
  readonly signal: string | null;
  readonly out: string;
  readonly err: string;
}

/** What a job may be started with. */
export interface JobOptions {
  readonly env?: Record<string, string>;
  /** Deno's permissions: all by default. */
  readonly permissions?: readonly string[];
  /** Arguments of the launcher. */
  readonly launcherArgs?: readonly string[];
}

const known: readonly (Omit<Launcher, "program"> & { programs: string[]; says: RegExp })[] = [
  {
    name: "mpich",
    programs: ["mpiexec.mpich", "mpiexec.hydra", "mpiexec"],
    says: /HYDRA/,
    args: [],
    wrongLibrary: "libmpi.so.40",
  },
  {
    name: "openmpi",
    programs: ["mpiexec.openmpi", "mpiexec"],
    says: /Open ?MPI|OpenRTE/,
    args: ["--allow-run-as-root", "--oversubscribe"],
    wrongLibrary: "libmpich.so.12",
  },
];

/** The launcher of that name; null where it is not installed. */
export function findLauncher(name: Launcher["name"]): Launcher | null {
  const { programs, says, ...rest } = known.find((launcher) => launcher.name === name)!;
  for (const program of programs) {
    try {
      const { stdout } = new Deno.Command(program, { args: ["--version"] }).outputSync();
      if (says.test(decoder.decode(stdout))) return { ...rest, program };
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }
  return null;
}

/**
 * Registers `name` once for each MPI. Where one is not installed its test is skipped and says so; with
 * `GRAFT_REQUIRE_MPI=1` it fails instead.
 */
export function forEachLauncher(
  name: string,
  fn: (launcher: Launcher, t: Deno.TestContext) => Promise<void>,
): void {
  for (const kind of ["mpich", "openmpi"] as const) {
    Deno.test(`${name} (${kind})`, async (t) => {
      const launcher = findLauncher(kind);
      if (launcher !== null) return await fn(launcher, t);
      const reason = `${kind} is not installed (Debian: mpich, openmpi-bin)`;
      if (Deno.env.get("GRAFT_REQUIRE_MPI") === "1") throw new Error(reason);
      console.log(`skipped: ${reason}`);
    });
  }
}

/** The command line that runs a program of tests/ as so many ranks. */
export function jobCommand(
  launcher: Launcher,
  ranks: number,
  program: string,
  args: readonly string[] = [],
  options: JobOptions = {},
): string[] {
  const { permissions = ["-A"], launcherArgs = [] } = options;
  const deno = [Deno.execPath(), "run", "--quiet", "--no-check", ...permissions, root + program];
  const start = [launcher.program, ...launcher.args, ...launcherArgs, "-n", String(ranks)];
  return [...start, ...deno, ...args];
}

/** Runs a command to its end; one that hangs is killed and makes an error. */
export async function runCommand(
  words: readonly string[],
  env: Record<string, string> = {},
): Promise<JobEnd> {
  const [program, ...args] = words;
  const child = new Deno.Command(program, {
    args,
    cwd: root,
    env: { NO_COLOR: "1", ...env },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let hangs = false;
  const timer = setTimeout(() => {
    hangs = true;
    child.kill("SIGKILL");
  }, HANG);
  const { code, signal, stdout, stderr } = await child.output();
  clearTimeout(timer);
  const [out, err] = [decoder.decode(stdout), decoder.decode(stderr)];
  if (hangs) throw new Error(`${words.join(" ")}: no end after ${HANG} ms\n${out}\n${err}`);
  return { code, signal, out, err };
}

/** Runs a program of tests/ as so many ranks, to its end. */
export async function runJob(
  launcher: Launcher,
  ranks: number,
  program: string,
  args: readonly string[] = [],
  options: JobOptions = {},
): Promise<JobEnd> {
  return await runCommand(jobCommand(launcher, ranks, program, args, options), options.env);
}

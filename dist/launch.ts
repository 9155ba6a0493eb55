/**
 * A supervisor: starts a job again when it fails.
 *
 * @module
 */

/** Options of `supervise`. */
export interface SuperviseOptions {
  /** How often the command may be started again. */
  readonly restarts: number;
  /** Arguments that are added to the command when it is started again, such as `--resume`. */
  readonly add?: readonly string[];
  /** Where lines about what happens go; standard error by default. */
  readonly log?: (line: string) => void;
}

/** How long a launcher may take to end after a rank's watchdog has ended the job, in ms. */
const END_TIME = 3000;
const POLL = 250;

const passedOn = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"] as const;
/** Signals after which a job is not started again: somebody wants it to end. */
const ending: readonly string[] = ["SIGINT", "SIGTERM", "SIGHUP"];

/** How a command ended. */
interface End {
  readonly code: number;
  readonly signal: Deno.Signal | null;
  /** The signal that we were sent, and passed on. */
  readonly told: string | null;
}

/**
 * Runs a command, and runs it again when it ends with another code than 0, up to `restarts` times. The
 * command, a launcher of MPI with a training program, goes on from its last checkpoint: by an argument
 * in `add`, or by its own `GRAFT_RESTART`, a variable that counts the restarts.
 *
 * SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the command; after one of the first
 * three it is not started again. Its standard input is empty.
 *
 * @returns The command's last exit code; 128 and its number where a signal ended it.
 * @throws Error where the command cannot be started.
 */
export async function supervise(
  command: readonly string[],
  options: SuperviseOptions,
): Promise<number> {
  const { restarts, add = [], log = (line) => console.error(line) } = options;
  for (let attempt = 0;; attempt++) {
    const words = attempt === 0 ? command : [...command, ...add];
    log(
      `launch: ${attempt === 0 ? "starts" : `restart ${attempt} of ${restarts}:`} ${
        words.join(" ")
      }`,
    );
    const started = performance.now();
    const end = await runOnce(words, attempt, log);
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const how = end.signal === null ? `code ${end.code}` : `${end.signal} (code ${end.code})`;
    if (end.code === 0) {
      if (attempt > 0) log(`launch: done, after ${attempt} restarts`);
      return 0;
    }
    log(`launch: ended with ${how} after ${seconds} s`);
    if (end.told !== null) {
      log(`launch: ${end.told} was passed on: no restart`);
      return end.code;
    }
    if (attempt === restarts) {
      log(`launch: gives up after ${restarts} restarts`);
      return end.code;
    }
  }
}

/**
 * Kills a launcher that still waits for a machine that is cut off, as Open MPI's does for minutes, after
 * a rank has left its reason in the file `notice`. Gives what stops the looking.
 */
function watchNotice(notice: string, child: Deno.ChildProcess, log: (line: string) => void) {
  let seen = 0;
  const timer = setInterval(() => {
    if (seen === 0 && Deno.statSync(notice).size > 0) seen = performance.now();
    if (seen === 0 || performance.now() - seen < END_TIME) return;
    clearInterval(timer);
    log("launch: a rank's watchdog has ended the job, but the launcher still waits, and is killed");
    child.kill("SIGKILL");
  }, POLL);
  return () => clearInterval(timer);
}

async function runOnce(
  words: readonly string[],
  attempt: number,
  log: (line: string) => void,
): Promise<End> {
  const notice = await Deno.makeTempFile();
  try {
    return await runWith(
      words,
      { GRAFT_RESTART: String(attempt), GRAFT_LAUNCH_NOTICE: notice },
      log,
    );
  } finally {
    await Deno.remove(notice);
  }
}

async function runWith(
  words: readonly string[],
  env: { GRAFT_RESTART: string; GRAFT_LAUNCH_NOTICE: string },
  log: (line: string) => void,
): Promise<End> {
  const [program, ...args] = words;
  // In a session of its own: a terminal's Ctrl-C comes to this process alone, which passes it on once.
  const options = { args, stdin: "null", env, detached: true } as const;
  const child = new Deno.Command(program, options).spawn();
  const stopWatching = watchNotice(env.GRAFT_LAUNCH_NOTICE, child, log);
  let told: string | null = null;
  const handlers = passedOn.map((signal) => {
    const handler = () => {
      if (ending.includes(signal)) told = signal;
      try {
        child.kill(signal);
      } catch {
        // it has just ended
      }
    };
    Deno.addSignalListener(signal, handler);
    return () => Deno.removeSignalListener(signal, handler);
  });
  try {
    const { code, signal } = await child.status;
    return { code, signal, told };
  } finally {
    stopWatching();
    for (const remove of handlers) remove();
  }
}

/**
 * A supervisor: starts a job again when it fails.
 *
 * @module
 */

import { constants } from "node:os";
import { NOTICE, type Notice, readNotice } from "./notice.ts";

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
type Passed = typeof passedOn[number];
/** Signals after which a job is not started again: somebody wants it to end. */
const ending: readonly string[] = ["SIGINT", "SIGTERM", "SIGHUP"];

/** How a command ended. */
interface End {
  readonly code: number;
  readonly signal: Deno.Signal | null;
  /** The last signal that we were sent, and passed on. */
  readonly passed: Passed | null;
  /** The last one that was to end the job. */
  readonly told: Passed | null;
  readonly notice: Notice;
}

/** Why a command that ended with 0 has not done its work, and the code for it; null where it has. */
function hiddenEnd({ passed, told, notice }: End): { why: string; code: number } | null {
  const { begun, ended, code } = notice;
  if (code > 0) return { why: `a rank ended with code ${code}`, code };
  const signalled = passed === null ? 1 : 128 + constants.signals[passed];
  if (ended < begun) {
    return { why: `${begun - ended} of ${begun} ranks did not end by themselves`, code: signalled };
  }
  if (begun > 0 || told === null) return null;
  return { why: `${told} was to end it and no rank says that it is done`, code: signalled };
}

/**
 * Runs a command, and runs it again when it ends with another code than 0, up to `restarts` times. The
 * command, a launcher of MPI with a training program, goes on from its last checkpoint: by an argument
 * in `add`, or by its own `GRAFT_RESTART`, a variable that counts the restarts.
 *
 * SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the command; after one of the first
 * three it is not started again. Its standard input is empty.
 *
 * A launcher may end with 0 although its ranks were killed, or ended with another code. Those on this
 * machine leave word of how they ended, and that counts: 0 is a success where each rank closed its group
 * and ended with 0. Without such word, a 0 after one of the three signals counts as an end by it.
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
    const hidden = end.code === 0 ? hiddenEnd(end) : null;
    const code = hidden?.code ?? end.code;
    if (code === 0) {
      if (attempt > 0) log(`launch: done, after ${attempt} restarts`);
      return 0;
    }
    const but = hidden ? `, but ${hidden.why}: it counts as ${code}` : "";
    const how = end.signal === null ? `code ${end.code}` : `${end.signal} (code ${end.code})`;
    log(`launch: ended with ${how} after ${seconds} s${but}`);
    if (end.told !== null) {
      log(`launch: ${end.told} was passed on: no restart`);
      return code;
    }
    if (attempt === restarts) {
      log(`launch: gives up after ${restarts} restarts`);
      return code;
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
    if (seen === 0 && readNotice(notice).late) seen = performance.now();
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
    const env = { GRAFT_RESTART: String(attempt), [NOTICE]: notice };
    const end = await runWith(words, env, notice, log);
    return { ...end, notice: readNotice(notice) };
  } finally {
    await Deno.remove(notice);
  }
}

async function runWith(
  words: readonly string[],
  env: Record<string, string>,
  notice: string,
  log: (line: string) => void,
): Promise<Omit<End, "notice">> {
  const [program, ...args] = words;
  // In a session of its own: a terminal's Ctrl-C comes to this process alone, which passes it on once.
  const options = { args, stdin: "null", env, detached: true } as const;
  let child: Deno.ChildProcess | null = null;
  let passed: Passed | null = null;
  let told: Passed | null = null;
  // Before the command is there: no signal ends this process and leaves the job alone.
  const handlers = passedOn.map((signal) => {
    const handler = () => {
      passed = signal;
      if (ending.includes(signal)) told = signal;
      try {
        child?.kill(signal);
      } catch {
        // it has just ended
      }
    };
    Deno.addSignalListener(signal, handler);
    return () => Deno.removeSignalListener(signal, handler);
  });
  let stopWatching = () => {};
  try {
    child = new Deno.Command(program, options).spawn();
    stopWatching = watchNotice(notice, child, log);
    const { code, signal } = await child.status;
    return { code, signal, passed, told };
  } finally {
    stopWatching();
    for (const remove of handlers) remove();
  }
}

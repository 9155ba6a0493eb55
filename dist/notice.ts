/**
 * What ranks tell the supervisor that started their launcher: lines in a file of its machine.
 *
 * Launchers do not always pass on how ranks have ended. MPICH's before 4.1 takes a rank's end after a
 * signal for its own doing, and ends with 0 (https://github.com/pmodels/mpich/pull/5930); later ones may,
 * where several ranks end at once (https://github.com/pmodels/mpich/issues/7057).
 *
 * @module
 */

/** The variable that holds the file's path. */
export const NOTICE = "GRAFT_LAUNCH_NOTICE";

/** What a rank has to say. */
type Word = "begins" | `ends ${number}` | `late: ${string}`;

/** Leaves word for the supervisor, if there is one on this machine. */
export function tellSupervisor(word: Word): void {
  const notice = Deno.env.get(NOTICE);
  if (notice === undefined) return;
  try {
    Deno.writeTextFileSync(notice, `${word}\n`, { append: true, create: false });
  } catch {
    // another machine, or no permission: then the launcher's word has to do
  }
}

/** What the ranks of a machine have said. */
export interface Notice {
  /** How many have a group. */
  readonly begun: number;
  /** How many of them have closed it, and ended by themselves. */
  readonly ended: number;
  /** The largest of their exit codes. */
  readonly code: number;
  /** Whether a watchdog has ended the job. */
  readonly late: boolean;
}

/** Reads the words in a file. */
export function readNotice(file: string): Notice {
  const words = Deno.readTextFileSync(file).split("\n");
  const codes = words.filter((word) => word.startsWith("ends ")).map((word) => +word.slice(5));
  return {
    begun: words.filter((word) => word === "begins").length,
    ended: codes.length,
    code: Math.max(0, ...codes),
    late: words.some((word) => word.startsWith("late: ")),
  };
}

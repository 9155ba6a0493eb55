/**
 * Starts a job of several processes, and starts it again when it fails: `deno task launch --help`.
 *
 * A rank that is lost takes the job down with it; what brings it back is a checkpoint and this.
 */

import { parseArgs } from "@std/cli/parse-args";
import { supervise } from "@graft/ml/dist";

const HELP = `Runs a command, and runs it again when it fails.

  deno task launch [flags] -- command ...

  --restarts N   how often to start it again                     (3)
  --add WORD     an argument to add when it is started again; may be given several times
  --help         this text

For example, going on from the last checkpoint:

  deno task launch --add=--resume -- mpiexec -n 2 deno task train --out out/two`;

function fail(message: string): never {
  console.error(`error: ${message}; --help lists the flags`);
  Deno.exit(2);
}

/** What is neither a flag nor its value is most often the command, or a value that looks like a flag. */
function refuse(arg: string): never {
  const before = Deno.args[Deno.args.indexOf(arg) - 1];
  if (before === "--add" || before === "--restarts") {
    fail(`write ${before}=${arg}, for it begins with a dash`);
  }
  if (!arg.startsWith("-")) fail(`needs -- before the command: deno task launch -- ${arg} ...`);
  fail(`there is no flag ${arg}`);
}

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["restarts", "add"],
    collect: ["add"],
    boolean: ["help"],
    "--": true,
    unknown: refuse,
  });
  if (flags.help) {
    console.log(HELP);
    Deno.exit(0);
  }
  const { restarts = "3", add = [] } = flags;
  if (!/^\d+$/.test(restarts)) {
    fail(`--restarts must be a whole number from 0 on, got "${restarts}"`);
  }
  if (add.includes("")) fail("--add needs a word");
  const command = flags["--"] ?? [];
  if (command.length === 0) fail("needs a command after --");
  try {
    Deno.exit(await supervise(command, { restarts: Number(restarts), add }));
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(1);
  }
}

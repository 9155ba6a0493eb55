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

if (import.meta.main) {
  const flags = parseArgs(Deno.args, {
    string: ["restarts"],
    collect: ["add"],
    boolean: ["help"],
    "--": true,
    unknown: (arg: string) => fail(`there is no flag ${arg}`),
  });
  if (flags.help) {
    console.log(HELP);
    Deno.exit(0);
  }
  const restarts = Number(flags.restarts ?? 3);
  if (!(Number.isInteger(restarts) && restarts >= 0)) {
    fail(`--restarts must be a whole number from 0 on, got "${flags.restarts}"`);
  }
  const command = flags["--"] ?? [];
  if (command.length === 0) fail("needs a command after --");
  try {
    const add = (flags.add ?? []).map(String);
    Deno.exit(await supervise(command, { restarts, add }));
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    Deno.exit(1);
  }
}

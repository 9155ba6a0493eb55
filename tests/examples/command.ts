/** The examples as a user runs them, from a shell. */

const root = new URL("../../", import.meta.url).pathname;
const decoder = new TextDecoder();

/** An example, by its name, as a process whose output is kept. */
export function command(example: string, args: readonly string[]): Deno.Command {
  return new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--quiet", "--no-check", `${root}examples/${example}.ts`, ...args],
    cwd: root,
    env: {
      NO_COLOR: "1",
      // A Vulkan driver that misses it complains on standard error.
      XDG_RUNTIME_DIR: Deno.env.get("XDG_RUNTIME_DIR") || "/tmp",
    },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  });
}

/** How an example ends, and what it says. */
export async function run(
  example: string,
  ...args: string[]
): Promise<[code: number, out: string, err: string]> {
  const { code, stdout, stderr } = await command(example, args).output();
  return [code, decoder.decode(stdout), decoder.decode(stderr)];
}

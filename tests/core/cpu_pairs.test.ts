/**
 * The cpu backend where V8 pairs vectors: another tile, made of code that V8 rewrites. The process has
 * to be started so, hence a process of its own.
 */

import { assertEquals, assertStringIncludes } from "@std/assert";

const root = new URL("../../", import.meta.url);
const FLAGS = "--experimental-wasm-revectorize,--no-wasm-bounds-checks";

async function deno(args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...args],
    cwd: root,
    env: { DENO_V8_FLAGS: FLAGS, GRAFT_THREADS: "2", NO_COLOR: "1" },
  }).output();
  const decoder = new TextDecoder();
  assertEquals(code, 0, decoder.decode(stdout) + decoder.decode(stderr));
  return decoder.decode(stdout);
}

Deno.test("cpu: V8's flags for pairs of vectors are noticed, and kernels compute the same", async () => {
  const program = `import { init } from "@graft/ml";
const device = await init({ device: "cpu" });
console.log(device.description);`;
  assertStringIncludes(await deno(["eval", program]), "vectors in pairs, 2 threads");
  await deno(["test", "-A", "--no-check", "tests/core/cpu_kernels.test.ts"]);
});

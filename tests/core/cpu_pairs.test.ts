/**
 * The cpu backend where V8 pairs vectors: another tile, made of code that V8 rewrites. The process has
 * to be started so, hence a process of its own.
 */

import { assertEquals, assertStringIncludes } from "@std/assert";

const root = new URL("../../", import.meta.url);
const FLAGS = "--experimental-wasm-revectorize,--no-wasm-bounds-checks";

async function deno(args: readonly string[], flags = FLAGS): Promise<string> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [...args],
    cwd: root,
    env: { ...flags ? { DENO_V8_FLAGS: flags } : {}, GRAFT_THREADS: "2", NO_COLOR: "1" },
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

Deno.test("cpu: generated loops give the same bits with vectors in pairs", async () => {
  const program = `import { grad, init, layerNorm, manualSeed, uniform, Variable } from "@graft/ml";
await init({ device: "cpu" });
manualSeed(3);
const x = new Variable(uniform([9, 403], { low: -4, high: 4 }), { requiresGrad: true });
const w = new Variable(uniform([403]), { requiresGrad: true });
const half = x.to("bf16").to("f32");
for (const y of [x.gelu("tanh"), half.silu(), x.logSoftmax(), x.logsumexp(0), layerNorm(x, w, w)]) {
  for (const t of [y, ...grad(y.mul(y).sum(), [x, w])]) if (t) console.log((await t.data()).join());
}
console.log((await x.max(1).data()).join(), (await x.to("i32").sum(1).data()).join());`;
  const pairs = await deno(["eval", program]);
  assertEquals(pairs.split("\n").length > 12, true);
  assertEquals(pairs === await deno(["eval", program], ""), true, "a bit differs");
});

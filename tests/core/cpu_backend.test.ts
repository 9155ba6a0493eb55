// The cpu backend on its own: programs, memory, threads, and what goes wrong in a kernel.
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { createCpuBackend } from "../../core/cpu/backend.ts";
import { apply, constant } from "../../core/expr.ts";
import type { Backend, Step } from "../../core/kernel.ts";
import { i32 } from "../../core/wasm.ts";
import { load, loop, random, runLoop } from "./cpu_lab.ts";

Deno.test("cpu: a program replays, in place, with new scalars, and holds its results", async () => {
  const backend = await createCpuBackend({ threads: 2 });
  const n = 100000;
  const kernel = loop({
    label: "scale",
    shape: [n],
    body: apply("mul", load(0, [1]), { kind: "scalar", type: "f32", slot: 0 }),
    scalars: ["f32"],
    inPlace: 0,
  });
  const buffer = backend.allocate(4 * n);
  backend.write(buffer, new Float32Array(n).fill(1));
  const step = { kernel, inputs: [buffer], outputs: [buffer], workspace: null, scalars: 0 };
  const program = backend.program([step, { ...step, scalars: 64 }], 128);
  const before = { ...backend.counters };
  const scalars = new Uint32Array(128);
  const results = [];
  for (const x of [2, 3]) {
    const values = new Float32Array(scalars.buffer);
    values[0] = x;
    values[64] = 10;
    results.push(await program.run({ uploads: [], scalars, results: [{ buffer, bytes: 4 * n }] }));
  }
  const [first, second] = await Promise.all(results.map((r) => r.fetch()));
  assert(new Float32Array(first[0]).every((x) => x === 20));
  assert(new Float32Array(second[0]).every((x) => x === 600));
  assertEquals(backend.counters, before);
  const again = backend.program([step], 64);
  assertEquals(backend.counters.pipelines, before.pipelines);
  again.dispose();
  program.dispose();
  await assertRejects(() => program.run({ uploads: [], scalars, results: [] }), Error, "disposed");
  const part = await backend.read(buffer, 8, 4 * (n - 2));
  assertEquals([...new Float32Array(part)], [600, 600]);
  backend.free(buffer);
  assertThrows(() => backend.free(buffer), Error, "freed");
  backend.close();
  assertThrows(() => backend.allocate(16), Error, "closed");
});

Deno.test("cpu: timers and other work get their turn between runs", async () => {
  const backend = await createCpuBackend({ threads: 1 });
  const buffer = backend.allocate(16);
  const kernel = loop({ shape: [4], body: constant("f32", 1), inputs: [] });
  const step = { kernel, inputs: [], outputs: [buffer], workspace: null, scalars: 0 };
  const program = backend.program([step], 0);
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  const end = performance.now() + 50;
  while (performance.now() < end) {
    await program.run({ uploads: [], scalars: new Uint32Array(0), results: [] });
  }
  clearInterval(timer);
  assert(turns > 5, `${turns} turns`);
  backend.close();
});

Deno.test("cpu: memory is used again, and running out of it says so", async () => {
  const backend = await createCpuBackend({ threads: 1 });
  const next = random(5);
  const held: { buffer: ReturnType<Backend["allocate"]>; mark: number; words: number }[] = [];
  for (let i = 0; i < 3000; i++) {
    if (held.length > 40 || (held.length > 0 && next() < 0.45)) {
      const [{ buffer, mark, words }] = held.splice(Math.floor(next() * held.length), 1);
      const ends = [0, 4 * (words - 1)].map((at) => backend.read(buffer, 4, at));
      for (const end of ends) assertEquals(new Uint32Array(await end)[0], mark);
      backend.free(buffer);
    } else {
      const words = 1 + Math.floor(next() * next() * 200000);
      const buffer = backend.allocate(4 * words);
      backend.write(buffer, new Uint32Array(words).fill(i));
      held.push({ buffer, mark: i, words });
    }
  }
  held.forEach(({ buffer }) => backend.free(buffer));
  assertEquals(backend.counters.bytes, 0);
  assert(backend.counters.peakBytes < 40 * 800000);
  // All of it came together again: one block as large as the first growth fits.
  backend.free(backend.allocate(12 << 20));
  assertThrows(() => backend.allocate(5e9), Error, "needs 5000000000 bytes");
  backend.close();
});

Deno.test("cpu: a program that never closes its device ends by itself", async () => {
  const url = new URL("../../core/cpu/backend.ts", import.meta.url);
  const script = `
    const { createCpuBackend } = await import(${JSON.stringify(url.href)});
    const b = await createCpuBackend({ threads: 2 });
    const n = 1 << 20;
    const [x, y] = [b.allocate(4 * n), b.allocate(4 * n)];
    const kernel = {
      kind: "loop", label: "exp", shape: [n], reduced: 0, combine: null,
      body: { kind: "apply", type: "f32", op: "exp", args: [
        { kind: "load", type: "f32", input: 0, strides: [1], offset: 0, bounds: [] }] },
      inputs: ["f32"], scalars: [], output: "f32", write: { strides: [1], offset: 0 }, inPlace: null,
    };
    const p = b.program([{ kernel, inputs: [x], outputs: [y], workspace: null, scalars: 0 }], 0);
    for (let i = 0; i < 20; i++) {
      await p.run({ uploads: [], scalars: new Uint32Array(0), results: [] });
    }
    console.log("done");
  `;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["eval", script],
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), 20000);
  const { code, stdout, stderr } = await child.output();
  clearTimeout(timer);
  assertEquals(new TextDecoder().decode(stdout), "done\n", new TextDecoder().decode(stderr));
  assertEquals(code, 0);
});

Deno.test("cpu: a kernel that traps names itself, and the backend lives on", async () => {
  for (const threads of [1, 2, 3]) {
    const backend = await createCpuBackend({ threads });
    const buffer = backend.allocate(64);
    const bad: Step["kernel"] = {
      kind: "call",
      label: "broken",
      op: {
        name: "broken",
        accepts: () => true,
        epilogue: false,
        wgsl: () => {
          throw new Error("not here");
        },
        wasm: () => ({
          stages: [{
            units: 40,
            cost: 1e6,
            // Division by zero, in one of the units.
            build: (f) => f.store(f.output(0), i32.div_s(1, i32.sub(f.unit, 30))),
          }],
          workspace: 0,
          scratch: 0,
        }),
      },
      attrs: {},
      inputs: [],
      outputs: [{ dtype: "i32", shape: [1], strides: [1], offset: 0 }],
      scalars: [],
      epilogue: null,
    };
    const step = { kernel: bad, inputs: [], outputs: [buffer], workspace: null, scalars: 0 };
    const program = backend.program([step], 0);
    for (let i = 0; i < 30; i++) {
      await assertRejects(
        () => program.run({ uploads: [], scalars: new Uint32Array(0), results: [] }),
        Error,
        "broken: the kernel failed on the cpu",
      );
    }
    const kernel = loop({ shape: [50000], body: apply("neg", load(0, [1])) });
    const data = new Float32Array(50000).fill(2);
    const got = await runLoop(backend, kernel, [data], [], new Float32Array(50000));
    assert(got.every((x) => x === -2));
    backend.close();
  }
});

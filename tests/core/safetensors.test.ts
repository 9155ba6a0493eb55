import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import {
  encodeSafetensors,
  openSafetensors,
  type SafetensorsDtype,
  SafetensorsError,
  type SafetensorsInput,
  writeSafetensors,
} from "../../core/safetensors.ts";
import { writeAtomically } from "../../core/files.ts";

const PARITY = new URL("../parity/", import.meta.url).pathname;

function f32(...values: number[]): SafetensorsInput & { data: Uint8Array } {
  return {
    dtype: "F32",
    shape: [values.length],
    data: new Uint8Array(new Float32Array(values).buffer),
  };
}

/** A file of the given header text and so many bytes of data. */
function fileOf(header: string, dataBytes: number): Uint8Array {
  const json = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

async function assertBad(bytes: Uint8Array, ...parts: string[]): Promise<void> {
  const error = await assertRejects(
    () => openSafetensors(bytes, "weights.safetensors"),
    SafetensorsError,
  );
  for (const part of ["weights.safetensors", ...parts]) assertStringIncludes(error.message, part);
}

Deno.test("safetensors: a file of the Python library is read, and saved again to the same bytes", async () => {
  for (
    const path of [
      "safetensors_python.safetensors",
      "peft_lora/adapter_model.safetensors",
      "tiny_llama/model.safetensors",
    ]
  ) {
    await using file = await openSafetensors(PARITY + path);
    const tensors: [string, SafetensorsInput][] = [];
    for (const name of [...file.names].reverse()) {
      const { dtype, shape } = file.entries.get(name)!;
      tensors.push([name, { dtype, shape, data: () => file.read(name) }]);
    }
    const folder = await Deno.makeTempDir();
    await writeSafetensors(`${folder}/again.safetensors`, tensors, file.metadata);
    assertEquals(
      await Deno.readFile(`${folder}/again.safetensors`),
      await Deno.readFile(PARITY + path),
    );
    await Deno.remove(folder, { recursive: true });
  }
  await using file = await openSafetensors(PARITY + "safetensors_python.safetensors");
  assertEquals(file.metadata, { format: "pt" });
  assertEquals(file.entries.get("z.weight")!.shape, [2, 3]);
  const values = new Float32Array((await file.read("z.weight")).buffer);
  assertEquals([...values], [0, 0.25, 0.5, 0.75, 1, 1.25]);
  assertEquals(new BigInt64Array((await file.read("a.weight")).buffer)[1], 2n ** 40n);
  assertEquals(new Float16Array((await file.read("half")).buffer)[2], 65504);
  assertEquals(new Float32Array((await file.read('é\n"quoted"')).buffer)[0], 3.25);
  assertEquals((await file.read("empty")).length, 0);
  await assertRejects(() => file.read("absent"), SafetensorsError, 'no key "absent"');
});

Deno.test("safetensors: reading a tensor reads its bytes and no others", async () => {
  const bytes = encodeSafetensors([["a", f32(1, 2)], ["b", f32(3)], ["c", f32(4)]]);
  const ranges: [number, number][] = [];
  const file = await openSafetensors({
    size: bytes.length,
    read(offset, length) {
      ranges.push([offset, offset + length]);
      return Promise.resolve(bytes.subarray(offset, offset + length));
    },
  });
  ranges.length = 0;
  const b = await file.read("b");
  assertEquals(ranges, [[bytes.length - 8, bytes.length - 4]]);
  assertEquals(new Float32Array(b.buffer)[0], 3);
  const fromBlob = await openSafetensors(new Blob([bytes]));
  assertEquals(await fromBlob.read("b"), b);
});

Deno.test("safetensors: reads at the same time through one handle do not mix", async () => {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/many.safetensors`;
  const names = Array.from({ length: 50 }, (_, i) => `t${i}`);
  await writeSafetensors(path, names.map((name, i) => [name, f32(...Array(100).fill(i))]));
  await using file = await openSafetensors(path);
  const read = await Promise.all(names.map((name) => file.read(name)));
  read.forEach((bytes, i) => assertEquals(new Float32Array(bytes.buffer)[99], i));
  await Deno.remove(folder, { recursive: true });
});

Deno.test("safetensors: a bad file is an error with the file, the key and the reason", async () => {
  const entry = (dtype: string, shape: unknown, begin: unknown, end: unknown) =>
    JSON.stringify({ dtype, shape, data_offsets: [begin, end] });
  const good = entry("F32", [1], 0, 4);

  await assertBad(new Uint8Array(3), "at least 8 bytes, has 3");
  await assertBad(fileOf(`{"a":${good}}`, 4).slice(0, 30), "truncated");
  await assertBad(fileOf(`{"a":${good}}`, 3), '"a"', "truncated");
  const oversized = new Uint8Array(16);
  new DataView(oversized.buffer).setBigUint64(0, 100_000_001n, true);
  await assertBad(oversized, "100000001", "limit is 100000000");
  await assertBad(new Uint8Array(64).fill(255), "limit");
  await assertBad(fileOf("{nonsense", 0), "not JSON");
  await assertBad(fileOf("[1]", 0), "not a JSON object");
  await assertBad(fileOf(` {"a":${good}}`, 4), "not a JSON object");
  const notUtf8 = fileOf(`{"a":${good}}`, 4);
  notUtf8[10] = 0xff;
  await assertBad(notUtf8, "not UTF-8");
  await assertBad(fileOf(`{"a":${good},"b":${entry("F32", [1], 2, 6)}}`, 6), '"b"', "inside of");
  await assertBad(fileOf(`{"a":${good},"b":${good}}`, 4), '"b"', "inside of");
  await assertBad(fileOf(`{"a":${good},"b":${entry("F32", [1], 8, 12)}}`, 12), '"b"', "no tensor");
  await assertBad(fileOf(`{"a":${entry("F32", [1], 4, 8)}}`, 8), '"a"', "no tensor");
  await assertBad(fileOf(`{"a":${good}}`, 9), 'after key "a"', "no tensor");
  await assertBad(fileOf(`{"a":${good},"b":1,"\\u0061":${good}}`, 4), 'key "a" comes twice');
  await assertBad(fileOf(`{"a":{"dtype":"F32","dtype":"F32"}}`, 4), 'key "dtype" comes twice');
  await assertBad(fileOf(`{"a":${entry("F31", [1], 0, 4)}}`, 4), '"a"', 'dtype "F31"', "BF16");
  await assertBad(fileOf(`{"a":${entry("constructor", [1], 0, 4)}}`, 4), '"a"', "dtype");
  await assertBad(fileOf(`{"a":${entry("F32", [2], 0, 4)}}`, 4), '"a"', "[2]", "needs 8 bytes");
  await assertBad(fileOf(`{"a":${entry("F32", [-1], 0, 4)}}`, 4), '"a"', "[-1]");
  await assertBad(fileOf(`{"a":${entry("F32", [1.5], 0, 6)}}`, 6), '"a"', "[1.5]");
  await assertBad(fileOf(`{"a":${entry("F32", [2 ** 40, 2 ** 40], 0, 4)}}`, 4), '"a"');
  await assertBad(fileOf(`{"a":${entry("F32", 3, 0, 4)}}`, 4), '"a"', '"shape"');
  await assertBad(fileOf(`{"a":${entry("F32", [1], 4, 0)}}`, 4), '"a"', "data_offsets");
  await assertBad(fileOf(`{"a":${entry("F32", [1], 0, "4")}}`, 4), '"a"', "data_offsets");
  await assertBad(fileOf(`{"a":null}`, 0), '"a"', "needs an object");
  await assertBad(fileOf(`{"__metadata__":{"format":1}}`, 0), "__metadata__", "format");
  await assertRejects(() => openSafetensors("/no/such/file"), Error, "cannot open /no/such/file");
  await assertRejects(() => openSafetensors(PARITY), Error, "is a directory");

  // A file that others change while it is open.
  const path = await Deno.makeTempFile();
  await Deno.writeFile(path, encodeSafetensors([["a", f32(1, 2)], ["b", f32(3, 4)]]));
  await using open = await openSafetensors(path);
  const into = new Uint8Array(8);
  open.readSync("b", 4, into.subarray(0, 4));
  assertEquals(new Float32Array(into.buffer)[0], 4);
  assertThrows(
    () => open.readSync("b", 4, into),
    SafetensorsError,
    "has 8 bytes, needs 8 from 4 on",
  );
  await Deno.truncate(path, open.entries.get("b")!.begin + 5);
  for (const read of [() => open.readSync("b", 0, into), () => open.read("b")]) {
    const error = await assertRejects(async () => void await read(), SafetensorsError);
    for (const part of [path, "b:", "got 5 bytes", "truncated"]) {
      assertStringIncludes(error.message, part);
    }
  }
  await Deno.remove(path);
  const blob = await openSafetensors(new Blob([encodeSafetensors([["a", f32(1)]])]));
  assertThrows(() => blob.readSync("a", 0, into.subarray(4)), SafetensorsError, "waited for");

  // A key's text that looks like a header's end or like a key of its own is neither.
  const odd = await openSafetensors(
    fileOf(`{"} \\" {\\"a\\":":${good},"__proto__":${entry("F32", [1], 4, 8)}}`, 8),
  );
  assertEquals(odd.names, ['} " {"a":', "__proto__"]);
});

Deno.test("safetensors: bad input is not written", () => {
  const bad = (key: string, tensor: unknown, ...more: [string, SafetensorsInput][]) => () =>
    encodeSafetensors(
      [[key, tensor], ...more] as [string, SafetensorsInput & { data: Uint8Array }][],
    );
  assertThrows(bad("a", f32(1), ["a", f32(2)]), SafetensorsError, 'key "a" comes twice');
  assertThrows(bad("__metadata__", f32(1)), SafetensorsError, "reserved");
  assertThrows(bad("a", { ...f32(1), shape: [2] }), SafetensorsError, "needs 8 bytes, got 4");
  assertThrows(
    bad("a", { ...f32(1), dtype: "F31" as SafetensorsDtype }),
    SafetensorsError,
    'key "a" has dtype "F31"',
  );
});

Deno.test("safetensors: a save that fails leaves the old file whole and nothing beside it", async () => {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/model.safetensors`;
  await writeSafetensors(path, [["a", f32(1)]]);
  const old = await Deno.readFile(path);
  const failing: SafetensorsInput = {
    dtype: "F32",
    shape: [1],
    data: () => Promise.reject(new Error("No space left on device")),
  };
  await assertRejects(
    () => writeSafetensors(path, [["a", f32(2)], ["b", failing]]),
    Error,
    `write ${path}: No space left on device`,
  );
  await assertRejects(
    () => writeSafetensors(path, [["a", { ...f32(2), data: () => new Uint8Array(3) }]]),
    SafetensorsError,
    "needs 4 bytes, got 3",
  );
  assertEquals(await Deno.readFile(path), old);
  assertEquals([...Deno.readDirSync(folder)].map((entry) => entry.name), ["model.safetensors"]);
  await Deno.remove(folder, { recursive: true });
});

Deno.test({
  name: "safetensors: a full disk is an error, and the old file stays whole",
  // /dev/full is a disk that is always full.
  ignore: Deno.build.os !== "linux",
  async fn() {
    const folder = await Deno.makeTempDir();
    const path = `${folder}/model.safetensors`;
    await writeSafetensors(path, [["a", f32(1)]]);
    const old = await Deno.readFile(path);
    const full = await Deno.open("/dev/full", { write: true });
    const error = await assertRejects(
      () => writeAtomically(path, async () => void await full.write(new Uint8Array(4096))),
      Error,
    );
    full.close();
    assertStringIncludes(error.message, `write ${path}`);
    assertStringIncludes(error.message, "No space left");
    assertEquals(await Deno.readFile(path), old);
    await Deno.remove(folder, { recursive: true });
  },
});

Deno.test("safetensors: a process killed while saving leaves the old file whole", async () => {
  const folder = await Deno.makeTempDir();
  const path = `${folder}/model.safetensors`;
  await writeSafetensors(path, [["a", f32(1)]]);
  const old = await Deno.readFile(path);
  const source = `
    import { writeSafetensors } from ${
    JSON.stringify(new URL("../../core/safetensors.ts", import.meta.url).href)
  };
    const data = new Uint8Array(4 << 20);
    await writeSafetensors(${JSON.stringify(path)}, [
      ["a", { dtype: "U8", shape: [data.length], data }],
      ["b", { dtype: "U8", shape: [1], data: () => {
        console.log("half way");
        return new Promise(() => setInterval(() => {}, 1000));
      } }],
    ]);`;
  await Deno.writeTextFile(`${folder}/save.ts`, source);
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "--no-check", "--no-config", "-A", `${folder}/save.ts`],
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  assertStringIncludes(new TextDecoder().decode((await reader.read()).value), "half way");
  child.kill("SIGKILL");
  await child.status;
  await reader.cancel();
  assertEquals(await Deno.readFile(path), old);

  // What it left beside the file goes with a later save, once nobody can be writing it any more.
  const names = () => [...Deno.readDirSync(folder)].map((entry) => entry.name).sort();
  const left = names().find((name) => name.endsWith(".tmp"))!;
  await Deno.utime(`${folder}/${left}`, 0, 0);
  await writeSafetensors(path, [["a", f32(2)]]);
  assertEquals(names(), ["model.safetensors", "save.ts"]);
  await Deno.remove(folder, { recursive: true });
});

/** Loading a model's folder from a hub: a small one on loopback, since the real one is far. */

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { type HubOptions, type HubProgress, loadModelFolder } from "../../data/mod.ts";
import { COMMIT, HubServer } from "./hub_server.ts";

const ID = "graft/tiny";
const text = (content: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(content);
const noise = (length: number, seed: number): Uint8Array<ArrayBuffer> =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 255);

interface Lab {
  server: HubServer;
  cache: string;
  load(options?: HubOptions): Promise<string>;
  fails(options: HubOptions, ...parts: string[]): Promise<void>;
}

function hubTest(name: string, run: (lab: Lab) => Promise<void>): void {
  Deno.test(`hub: ${name}`, async () => {
    await using server = new HubServer(ID);
    const cache = await Deno.makeTempDir();
    server.files.set("config.json", text("{}"));
    server.files.set("tokenizer.json", noise(3000, 1));
    server.files.set("model.safetensors", noise(200_000, 2));
    const load = (options: HubOptions = {}) =>
      loadModelFolder(ID, { endpoint: server.endpoint, cache, ...options });
    const fails = async (options: HubOptions, ...parts: string[]) => {
      const { message } = await assertRejects(() => load(options), Error);
      for (const part of [`load ${ID}`, ...parts]) assertStringIncludes(message, part);
    };
    try {
      await run({ server, cache, load, fails });
    } finally {
      await Deno.remove(cache, { recursive: true });
    }
  });
}

const names = (folder: string): string[] => [...Deno.readDirSync(folder)].map((e) => e.name).sort();

hubTest("brings what a model needs, and a second run makes no request", async (lab) => {
  const { server, cache, load } = lab;
  for (const name of ["README.md", "pytorch_model.bin", "consolidated.safetensors"]) {
    server.files.set(name, noise(5000, 3));
  }
  for (const name of ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"]) {
    server.files.set(name, text(name));
  }
  const seen: HubProgress[] = [];
  const folder = await load({ onProgress: (progress) => seen.push(progress) });
  assertEquals(folder, `${cache}/hub/models--graft--tiny/${COMMIT}`);
  assertEquals(names(folder), [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  ]);
  for (const name of names(folder)) {
    assertEquals(await Deno.readFile(`${folder}/${name}`), server.files.get(name));
  }
  const { loaded, total } = seen.at(-1)!;
  assertEquals(loaded, total);
  assert(seen.every((progress, i) => i === 0 || progress.loaded >= seen[i - 1].loaded));
  assert(server.takeLog().length > 0);

  for (
    const options of [{}, { offline: true }, { revision: COMMIT }, { endpoint: "http://[::1]:1" }]
  ) {
    assertEquals(await load(options), folder);
  }
  assertEquals(server.takeLog(), []);
  assertEquals(names(`${cache}/hub/models--graft--tiny`), [COMMIT, `${COMMIT}.json`, "refs"]);

  // Asked for news, it asks for the commit alone; of another commit it brings the files.
  assertEquals(await load({ update: true }), folder);
  assertEquals(server.takeLog(), [`GET /api/models/${ID}/revision/main`]);
  server.commit = COMMIT.replaceAll("0", "f");
  const newer = await load({ update: true });
  assertEquals(newer, `${cache}/hub/models--graft--tiny/${server.commit}`);
  server.takeLog();
  assertEquals(await load(), newer);
  assertEquals(await load({ revision: COMMIT }), folder);
  assertEquals(server.takeLog(), []);
  assertEquals(await load({ revision: "refs/pr/1" }), newer);
});

hubTest("brings the parts that an index names, and an adapter's files", async (lab) => {
  const { server, load, fails } = lab;
  server.files.delete("model.safetensors");
  const map = { a: "model-1.safetensors", b: "model-2.safetensors", c: "model-1.safetensors" };
  server.files.set("model.safetensors.index.json", text(JSON.stringify({ weight_map: map })));
  server.files.set("model-1.safetensors", noise(2000, 4));
  await fails({}, "names model-2.safetensors", 'revision "main" does not have');
  server.files.set("model-2.safetensors", noise(2000, 5));
  server.files.set("model-3.safetensors", noise(2000, 6));
  const folder = await load();
  assertEquals(names(folder).filter((name) => name.startsWith("model")), [
    "model-1.safetensors",
    "model-2.safetensors",
    "model.safetensors.index.json",
  ]);
  server.commit = COMMIT.replaceAll("0", "e");
  server.files.clear();
  server.files.set("adapter_config.json", text("{}"));
  server.files.set("adapter_model.safetensors", noise(2000, 7));
  assertEquals(names(await load({ update: true })), [
    "adapter_config.json",
    "adapter_model.safetensors",
  ]);
});

hubTest("a download that breaks off goes on where it was", async (lab) => {
  const { server, cache, load, fails } = lab;
  const weights = `/${ID}/resolve/${COMMIT}/model.safetensors`;
  // Within one call: after 50,000 bytes, and again after 30,000.
  server.breakAfter.set("model.safetensors", [50_000, 30_000]);
  const folder = await load();
  assertEquals(
    await Deno.readFile(`${folder}/model.safetensors`),
    server.files.get("model.safetensors"),
  );
  const ranges = server.takeLog().filter((line) =>
    line.includes(weights) && !line.endsWith("=0-0")
  );
  assertEquals(ranges, [
    `GET ${weights}`,
    `GET ${weights} bytes=50000-199999`,
    `GET ${weights} bytes=80000-199999`,
  ]);

  // Over calls: the first gives up, since nothing more comes, and leaves nothing that looks whole.
  await Deno.remove(cache, { recursive: true });
  server.breakAfter.set("model.safetensors", [70_000, 0]);
  await fails({}, "model.safetensors broke off after 70000 of 200000 bytes", "run again");
  assertEquals(names(folder), ["config.json", "tokenizer.json"]);
  await fails({ offline: true }, "not whole in the cache");
  server.takeLog();
  await load();
  assertStringIncludes(server.takeLog().join("\n"), `GET ${weights} bytes=70000-199999`);
  assertEquals(
    await Deno.readFile(`${folder}/model.safetensors`),
    server.files.get("model.safetensors"),
  );

  // Ended by its caller: what came is kept.
  await Deno.remove(cache, { recursive: true });
  server.breakAfter.set("model.safetensors", [40_000]);
  const ending = new AbortController();
  const onProgress = ({ path, loaded }: HubProgress) => {
    if (path === "model.safetensors" && loaded > 40_000) ending.abort(new Error("enough"));
  };
  await assertRejects(() => load({ onProgress, signal: ending.signal }), Error, "enough");
  server.takeLog();
  await load();
  assertMatch(server.takeLog().join("\n"), /model\.safetensors bytes=[1-9]\d*-199999/);

  // A file that was cut in the cache is brought again.
  await Deno.truncate(`${folder}/model.safetensors`, 10);
  await load();
  assertEquals(
    await Deno.readFile(`${folder}/model.safetensors`),
    server.files.get("model.safetensors"),
  );
});

hubTest("a connection that brings nothing is broken, and another goes on", async (lab) => {
  const { server, load, fails } = lab;
  const weights = server.files.get("model.safetensors")!;
  const silent = (bytes?: Uint8Array<ArrayBuffer>) =>
    new Response(new ReadableStream({ start: (to) => bytes && to.enqueue(bytes) }), {
      headers: { "Content-Length": `${weights.length}` },
    });
  const isWeights = (path: string, request: Request) =>
    path.endsWith("model.safetensors") && request.headers.get("Range") !== "bytes=0-0";
  server.answer = (path, request) => isWeights(path, request) ? silent() : undefined;
  await fails({ timeout: 0.3 }, "model.safetensors", "nothing came for 0.3 seconds");
  let calls = 0;
  server.answer = (path, request) =>
    isWeights(path, request) && calls++ === 0 ? silent(weights.subarray(0, 90_000)) : undefined;
  const folder = await load({ timeout: 1.5 });
  assertEquals(await Deno.readFile(`${folder}/model.safetensors`), weights);
  assertEquals(calls, 2);
  await fails({ timeout: 0, update: true }, "timeout needs seconds");
});

hubTest(
  "a killed process leaves nothing broken; two at once do not disturb each other",
  async (lab) => {
    const { server, cache, load } = lab;
    const weights = server.files.get("model.safetensors")!;
    let sent = (): void => {};
    const half = new Promise<void>((resolve) => sent = resolve);
    let hang: ReadableStreamDefaultController<Uint8Array> | undefined;
    server.answer = (path, request) => {
      const isProbe = request.headers.get("Range") === "bytes=0-0";
      if (!path.endsWith("model.safetensors") || isProbe || hang !== undefined) return undefined;
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          hang = controller;
          controller.enqueue(weights.subarray(0, 60_000));
          setTimeout(sent, 300);
        },
      });
      return new Response(body, { headers: { "Content-Length": `${weights.length}` } });
    };
    const module = import.meta.resolve("../../data/mod.ts");
    const options = JSON.stringify({ endpoint: server.endpoint, cache });
    const child = new Deno.Command(Deno.execPath(), {
      args: ["eval", `(await import("${module}")).loadModelFolder("${ID}", ${options})`],
      cwd: new URL("../..", import.meta.url),
      stderr: "null",
    }).spawn();
    await half;
    child.kill("SIGKILL");
    await child.status;
    const folder = `${cache}/hub/models--graft--tiny/${COMMIT}`;
    assertEquals(names(folder), ["config.json", "tokenizer.json"]);
    server.takeLog();
    assertEquals(await Promise.all([load(), load()]), [folder, folder]);
    assertEquals(await Deno.readFile(`${folder}/model.safetensors`), weights);
    const log = server.takeLog().filter((line) =>
      line.includes("resolve") && !line.endsWith("=0-0")
    );
    assertEquals(log.length, 1, log.join("\n"));
    assert(/ bytes=[1-9]\d*-199999$/.test(log[0]), log[0]);
  },
);

hubTest("damaged content is thrown away and told", async (lab) => {
  const { server, load, fails } = lab;
  for (const name of ["config.json", "model.safetensors"]) {
    const bytes = server.files.get(name)!.slice();
    bytes[1] ^= 1;
    server.corrupt.set(name, bytes);
    await fails({}, `${name} is not what the hub lists`, "run again");
    server.corrupt.set(name, new Uint8Array(5));
    await fails({}, `${name} has 5 bytes`);
    server.corrupt.delete(name);
  }
  await load();
});

hubTest("errors say what to do", async (lab) => {
  const { server, cache, fails, load } = lab;
  await fails({ revision: "v9" }, 'no revision "v9"', "a branch, a tag or a commit");
  await fails({ offline: true }, "offline", "load it once");
  await fails({ endpoint: "http://127.0.0.1:1" }, "cannot reach http://127.0.0.1:1", "network");
  await fails({ token: "secret" }, "the option token", '"hf_"');
  await fails({ endpoint: "hub" }, '"hub"', "HF_ENDPOINT");
  const other = { endpoint: server.endpoint, cache };
  await assertRejects(() => loadModelFolder("no/such", other), Error, "check the id (owner/name)");
  for (const path of ["./no", "/no/such", "a/b/c", "../x", "C:\\x", "x/..", ""]) {
    await assertRejects(() => loadModelFolder(path, other), Error, "no such folder");
  }
  assertEquals(await loadModelFolder(cache), cache);

  const answers: [
    status: number,
    code: string | undefined,
    token: string | undefined,
    part: string,
  ][] = [
    [401, "GatedRepo", undefined, `accept its terms at ${server.endpoint}/${ID}`],
    [403, "GatedRepo", "hf_x", "the token's account has no access"],
    [401, undefined, undefined, "check the id"],
    [401, undefined, "hf_x", "refuses the token"],
    [429, undefined, undefined, "wait"],
    [503, undefined, undefined, "run again later"],
  ];
  for (const [status, code, token, part] of answers) {
    const headers = new Headers(code === undefined ? [] : [["X-Error-Code", code]]);
    server.answer = () => new Response("no", { status, headers });
    await fails({ token }, part, `HTTP ${status}: no`);
  }
  // A gated model's list is open, its files are not.
  server.answer = (path, request) =>
    path.includes("/resolve/") && request.headers.get("Authorization") !== "Bearer hf_good"
      ? new Response(null, { status: 401, headers: { "X-Error-Code": "GatedRepo" } })
      : undefined;
  await fails({}, "is gated");
  await load({ token: "hf_good" });

  server.answer = undefined;
  const without = async (name: string, ...parts: string[]) => {
    const content = server.files.get(name)!;
    server.files.delete(name);
    server.commit = COMMIT.replaceAll("0", "d");
    await fails({ update: true }, ...parts);
    server.files.set(name, content);
  };
  server.files.set("pytorch_model.bin", noise(10, 1));
  await without("config.json", "no config.json");
  await without("model.safetensors", "no model.safetensors", "only pytorch_model.bin");
  server.answer = (path) =>
    path.endsWith("tokenizer.json")
      ? new Response(null, { status: 404, headers: { "X-Error-Code": "EntryNotFound" } })
      : undefined;
  await fails({ update: true }, "has no", "tokenizer.json");
});

hubTest("the environment gives endpoint, token and cache", async (lab) => {
  const { server, cache } = lab;
  const variables = { HF_ENDPOINT: `${server.endpoint}/`, HF_TOKEN: "hf_env", GRAFT_CACHE: cache };
  const before = Object.keys(variables).map((name) => [name, Deno.env.get(name)] as const);
  server.answer = (_, request) =>
    request.headers.get("Authorization") === "Bearer hf_env"
      ? undefined
      : new Response(null, { status: 401 });
  try {
    for (const [name, value] of Object.entries(variables)) Deno.env.set(name, value);
    assertEquals(await loadModelFolder(ID), `${cache}/hub/models--graft--tiny/${COMMIT}`);
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) Deno.env.delete(name);
      else Deno.env.set(name, value);
    }
  }
});

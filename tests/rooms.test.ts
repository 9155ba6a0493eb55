/** Who may import whom: the map in docs/architecture.md, held against the code. */

import { assertEquals } from "@std/assert";

const rooms: Record<string, readonly string[]> = {
  core: [],
  optim: ["core"],
  dist: ["core"],
  nn: ["core"],
  peft: ["core", "nn"],
  data: [],
  rlhf: ["core", "nn", "peft", "optim", "data"],
  tune: [],
};

async function* sources(folder: URL): AsyncGenerator<URL> {
  for await (const entry of Deno.readDir(folder)) {
    const url = new URL(entry.name + (entry.isDirectory ? "/" : ""), folder);
    if (entry.isDirectory) yield* sources(url);
    else if (entry.name.endsWith(".ts")) yield url;
  }
}

/** Module specifiers of a file, comments left out. */
function imports(text: string): string[] {
  const code = text.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/^\s*\/\/.*$/gm, "");
  const found = code.matchAll(/(?:\bfrom\s*|\bimport\s*\(?\s*|new URL\(\s*)"([^"]+)"/g);
  return [...found].map((m) => m[1]);
}

Deno.test("rooms: each imports only what it may", async () => {
  const root = new URL("../", import.meta.url);
  const wrong: string[] = [];
  let seen = 0;
  for (const [room, allowed] of Object.entries(rooms)) {
    for await (const file of sources(new URL(`${room}/`, root))) {
      const path = file.href.slice(root.href.length);
      for (const specifier of imports(await Deno.readTextFile(file))) {
        seen++;
        if (!specifier.startsWith(".")) {
          // data/ alone has dependencies.
          if (room !== "data" && !specifier.startsWith("node:")) {
            wrong.push(`${path}: ${specifier}`);
          }
          continue;
        }
        const target = new URL(specifier, file).href.slice(root.href.length);
        const [other] = target.split("/");
        if (other !== room && !allowed.includes(other)) wrong.push(`${path}: ${specifier}`);
        const backend = /^core\/(cpu|webgpu)\//.exec(target)?.[1];
        if (backend && !path.startsWith(`core/${backend}/`) && path !== "core/registry.ts") {
          wrong.push(`${path}: ${specifier} (only core/registry.ts names a backend)`);
        }
      }
    }
  }
  assertEquals(wrong, []);
  assertEquals(seen > 100, true, `only ${seen} imports were found`);
});

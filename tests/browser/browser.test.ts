/**
 * The bundle for the browser, in headless Chromium, where one is installed: the same losses as in Deno
 * from the cpu (one thread, and several on an isolated page) and from WebGPU.
 */

import { assert } from "@std/assert";
import { losses } from "./page.ts";

async function chromium(): Promise<string | null> {
  for (const path of ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]) {
    try {
      await Deno.stat(path);
      return path;
    } catch {
      // Look on.
    }
  }
  return null;
}

/** Serves the bundle and waits for what the page posts. */
async function visit(browser: string, bundle: string, isolated: boolean): Promise<string> {
  const posted = Promise.withResolvers<string>();
  const isolation: Record<string, string> = isolated
    ? {
      "cross-origin-opener-policy": "same-origin",
      "cross-origin-embedder-policy": "require-corp",
    }
    : {};
  const server = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    async (request) => {
      const { pathname } = new URL(request.url);
      if (pathname === "/report") {
        posted.resolve(await request.text());
        return new Response(null, { status: 204 });
      }
      const headers = { ...isolation };
      if (pathname === "/") {
        headers["content-type"] = "text/html";
        return new Response(`<script type="module" src="page.js"></script>`, { headers });
      }
      if (pathname !== "/page.js") return new Response(null, { status: 404 });
      headers["content-type"] = "text/javascript";
      return new Response(bundle, { headers });
    },
  );
  const profile = await Deno.makeTempDir();
  const process = new Deno.Command(browser, {
    args: [
      "--headless",
      "--no-sandbox",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      `--user-data-dir=${profile}`,
      `http://localhost:${server.addr.port}/`,
    ],
    stdout: "null",
    stderr: "null",
  }).spawn();
  const late = setTimeout(() => posted.reject(new Error("the page did not report")), 120_000);
  try {
    return await posted.promise;
  } finally {
    clearTimeout(late);
    process.kill("SIGKILL");
    await process.status;
    await server.shutdown();
    await Deno.remove(profile, { recursive: true }).catch(() => {});
  }
}

Deno.test({
  name: "browser: the losses of a page are those of Deno",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async (t) => {
    const browser = await chromium();
    if (!browser) {
      console.log("skipped: no Chromium is installed (Debian: apt-get install chromium)");
      return;
    }
    const bundled = await new Deno.Command(Deno.execPath(), {
      args: [
        "bundle",
        "--quiet",
        "--platform",
        "browser",
        new URL("page.ts", import.meta.url).pathname,
      ],
      stdout: "piped",
      stderr: "piped",
    }).output();
    assert(bundled.success, new TextDecoder().decode(bundled.stderr));
    const bundle = new TextDecoder().decode(bundled.stdout);
    const expected = await losses("cpu");
    for (const isolated of [false, true]) {
      await t.step(isolated ? "isolated" : "plain", async () => {
        const report = JSON.parse(await visit(browser, bundle, isolated));
        for (const device of ["cpu", "webgpu"]) {
          const found = report[device];
          assert(
            Array.isArray(found) && found.every((v, i) => Math.abs(v - expected[i]) < 1e-4),
            `${device}: ${found}, in Deno ${expected}`,
          );
        }
      });
    }
  },
});

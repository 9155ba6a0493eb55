/** A hub on loopback: the few endpoints that loading a model's folder uses, and ways to fail. */

import { createHash } from "node:crypto";

export const COMMIT = "0123456789abcdef0123456789abcdef01234567";

export class HubServer implements AsyncDisposable {
  /** Every request: method, path, and the range if it asked for one. */
  readonly log: string[] = [];
  /** The model's files; those over 1,000 bytes are listed as large files, by SHA-256. */
  readonly files: Map<string, Uint8Array<ArrayBuffer>> = new Map();
  /** After so many bytes the connection of a file breaks; taken once. */
  readonly breakAfter: Map<string, number[]> = new Map();
  /** What is served in place of a file's content. */
  readonly corrupt: Map<string, Uint8Array<ArrayBuffer>> = new Map();
  /** Answers a request in place of the hub. */
  answer: ((path: string, request: Request) => Response | undefined) | undefined;
  /** What `main` is. */
  commit: string = COMMIT;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor(readonly id: string) {
    this.#server = Deno.serve({
      hostname: "127.0.0.1",
      port: 0,
      onListen: () => {},
      onError: () => new Response(null, { status: 500 }),
    }, (request) => this.#handle(request));
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.#server.addr.port}`;
  }

  /** The log so far; it is empty afterwards. */
  takeLog(): string[] {
    return this.log.splice(0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }

  #handle(request: Request): Response {
    const path = decodeURIComponent(new URL(request.url).pathname);
    const range = request.headers.get("Range");
    this.log.push(`${request.method} ${path}${range ? ` ${range}` : ""}`);
    const answer = this.answer?.(path, request);
    if (answer !== undefined) return answer;
    const refuse = (status: number, code: string): Response =>
      Response.json({ error: code }, { status, headers: { "X-Error-Code": code } });

    const [, revision] = path.match(`^/api/models/${this.id}/revision/(.*)$`) ?? [];
    if (revision !== undefined) {
      if (revision !== "main" && revision !== "refs/pr/1" && revision !== this.commit) {
        return refuse(404, "RevisionNotFound");
      }
      return Response.json({ _id: "1", id: this.id, sha: this.commit, lastModified: 0 });
    }
    if (path === `/api/models/${this.id}/tree/${this.commit}`) return Response.json(this.#tree());
    const prefix = `/${this.id}/resolve/${this.commit}/`;
    if (!path.startsWith(prefix)) return refuse(404, "RepoNotFound");
    const name = path.slice(prefix.length);
    const content = this.corrupt.get(name) ?? this.files.get(name);
    return content === undefined
      ? refuse(404, "EntryNotFound")
      : this.#serve(name, content, range?.match(/^bytes=(\d+)-(\d+)$/) ?? undefined);
  }

  #tree(): unknown[] {
    const entries: unknown[] = [{ type: "directory", path: "onnx", size: 0, oid: "0".repeat(40) }];
    for (const [path, bytes] of this.files) {
      const blob = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
      const oid = createHash("sha256").update(bytes).digest("hex");
      const lfs = bytes.length > 1000 ? { oid, size: bytes.length, pointerSize: 130 } : undefined;
      entries.push({ type: "file", path, size: bytes.length, oid: blob, lfs });
    }
    return entries;
  }

  #serve(name: string, content: Uint8Array<ArrayBuffer>, range?: RegExpMatchArray): Response {
    const from = range ? Number(range[1]) : 0, to = range ? Number(range[2]) + 1 : content.length;
    const bytes = content.subarray(from, to);
    const headers = new Headers({
      ETag: `"${name}"`,
      "Content-Length": `${bytes.length}`,
      "Content-Type": "application/octet-stream",
    });
    if (range) headers.set("Content-Range", `bytes ${from}-${to - 1}/${content.length}`);
    const isProbe = range !== undefined && to === 1;
    const cut = isProbe ? undefined : this.breakAfter.get(name)?.shift();
    let pulls = 0;
    const body = cut === undefined ? bytes : new ReadableStream<Uint8Array>({
      async pull(controller) {
        if (pulls++ === 0 && cut > 0) return controller.enqueue(bytes.subarray(0, cut));
        // Time for the bytes to go out before the connection breaks.
        await new Promise((resolve) => setTimeout(resolve, 100));
        controller.error(new Error("broken off"));
      },
    }, { highWaterMark: 0 });
    return new Response(body, { status: range ? 206 : 200, headers });
  }
}

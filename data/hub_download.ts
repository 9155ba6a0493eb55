/** Brings one file of a model: resumed where it broke off, checked, and only then given its name. */

import { fileSystem, type OpenFile, reasonOf } from "./files.ts";
import { hubFetch, type HubRequest, unlessStalled } from "./hub_request.ts";

/** A file as the hub lists it. */
export interface HubFile {
  /** Its name in the model's folder. */
  readonly path: string;
  /** Bytes. */
  readonly size: number;
  /** SHA-256 of the content of a large file; SHA-1 of a git blob of a small one. */
  readonly checksum: string;
}

/**
 * Downloads a file of a commit into `folder`. What has come so far is kept in a file beside the
 * folder, under the checksum, for the next call to go on from; it is locked, so two processes do
 * not write one file.
 *
 * @param onBytes is called with the number of bytes of the file that are there.
 * @throws Error if the hub does not answer, the download breaks off, or what came is not what the
 * hub lists.
 */
export async function downloadHubFile(
  request: HubRequest,
  commit: string,
  file: HubFile,
  folder: string,
  onBytes: (count: number) => void,
): Promise<void> {
  const fs = fileSystem(`load ${request.id}`);
  const target = `${folder}/${file.path}`, partial = `${folder}.${file.checksum}.partial`;
  const part = await fs.open(partial, { read: true, write: true, create: true });
  try {
    await part.lock(true);
    // Another process may have brought it while this one waited.
    if (await sizeOf(target) === file.size) {
      await fs.remove(partial).catch(() => {}); // its name, made again after the other's rename
      onBytes(file.size);
      return;
    }
    await fill(request, commit, file, part, onBytes);
    await part.sync();
  } finally {
    part.close();
  }
  await fs.rename(partial, target).catch(async (error) => {
    if (await sizeOf(target) !== file.size) throw error;
  });
}

/** The size of a file; undefined if there is none. */
export async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await fileSystem("look for a file").stat(path)).size;
  } catch {
    return undefined;
  }
}

/** Appends what is missing. An attempt that brought bytes and broke off is followed by another. */
async function fill(
  request: HubRequest,
  commit: string,
  file: HubFile,
  part: OpenFile,
  onBytes: (count: number) => void,
): Promise<void> {
  const { path, size } = file;
  const what = `load ${request.id}: ${path}`;
  const hash = await hasher(file);
  let at = 0;
  const started = (await part.stat()).size;
  const buffer = new Uint8Array(1 << 20);
  while (at < started) {
    const count = await part.read(buffer);
    if (count === null) break;
    hash.update(buffer.subarray(0, count));
    at += count;
  }
  const startAgain = async (): Promise<never> => {
    await part.truncate(0);
    throw new Error(
      `${what} is not what the hub lists (${size} bytes, checksum ${file.checksum}): it was thrown ` +
        `away; run again, and if it stays so, ask what is between here and ${request.endpoint}`,
    );
  };
  if (at > size) await startAgain();
  onBytes(at);
  while (at < size) {
    const before = at;
    let broken: unknown = "the connection ended";
    let unwritten: Error | undefined;
    try {
      await unlessStalled(request, async (request, onAlive) => {
        for await (const chunk of await streamFrom(request, commit, file, at)) {
          onAlive();
          if (at + chunk.length > size) break;
          await writeAll(part, chunk).catch((error) => {
            throw unwritten = new Error(`${what}: cannot write to the cache: ${reasonOf(error)}`, {
              cause: error,
            });
          });
          hash.update(chunk);
          at += chunk.length;
          onBytes(at);
        }
      });
    } catch (error) {
      request.signal?.throwIfAborted();
      // Half a chunk may be there: the next call reads what is, this one must not go on.
      if (unwritten !== undefined) throw unwritten;
      broken = error;
    }
    if (at === before) {
      if (reasonOf(broken).startsWith("load ")) throw broken; // it says already what to do
      throw new Error(
        `${what} broke off after ${at} of ${size} bytes (${
          reasonOf(broken)
        }): run again, it goes ` +
          `on from there`,
        { cause: broken },
      );
    }
  }
  if (hash.digest("hex") !== file.checksum) await startAgain();
}

async function writeAll(part: OpenFile, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await part.write(bytes.subarray(at));
}

/** The file's bytes from an offset. */
async function streamFrom(
  request: HubRequest,
  commit: string,
  { path, size }: HubFile,
  offset: number,
): Promise<ReadableStream<Uint8Array>> {
  const { downloadFile, fileDownloadInfo } = await import("@huggingface/hub");
  const from = {
    repo: request.id,
    path,
    revision: commit,
    hubUrl: request.endpoint,
    accessToken: request.token,
  };
  // The library leaves this response's byte unread: its connection would stay open.
  const probe = hubFetch(request, (response) => response.body?.cancel());
  const downloadInfo = await fileDownloadInfo({ ...from, fetch: probe });
  if (downloadInfo === null || downloadInfo.size !== size) {
    throw new Error(
      `load ${request.id}: ${path} has ${downloadInfo?.size} bytes at ${request.endpoint}, which ` +
        `lists ${size}: run again, and if it stays so, give another revision`,
    );
  }
  const wanted = hubFetch(request, async (response) => {
    if (offset === 0 || response.status === 206) return;
    await response.body?.cancel();
    throw new Error(
      `load ${request.id}: ${request.endpoint} does not serve the rest of a file (HTTP ` +
        `${response.status}): clear the cache of ${path} and run again`,
    );
  });
  // Plain HTTP, which every mirror speaks and which goes on at any byte; not the hub's chunk store.
  const blob = await downloadFile({ ...from, downloadInfo, xet: false, fetch: wanted });
  return (offset === 0 ? blob! : blob!.slice(offset)).stream();
}

/** A running checksum of the kind that a file's is: `crypto.subtle` would need it in memory. */
async function hasher({ checksum, size }: HubFile): Promise<Hash> {
  // Not a literal: a browser's bundler has no such module, and never comes here.
  const name = "node:crypto";
  const { createHash } = await import(name) as { createHash(algorithm: string): Hash };
  if (checksum.length === 64) return createHash("sha256");
  const hash = createHash("sha1");
  hash.update(new TextEncoder().encode(`blob ${size}\0`));
  return hash;
}

interface Hash {
  update(bytes: Uint8Array): unknown;
  digest(encoding: "hex"): string;
}

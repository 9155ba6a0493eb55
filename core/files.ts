/**
 * The few file operations that core needs. Deno is touched only when one of them is called, so a
 * module that imports this one still loads in a browser.
 *
 * @module
 */

/** An open file, as far as core uses it. */
export interface OpenFile {
  /** Moves the position; `whence` 0 counts from the start of the file. */
  seekSync(offset: number, whence: number): number;
  /** Reads up to `into.length` bytes; null at the end of the file. */
  read(into: Uint8Array): Promise<number | null>;
  /** As `read`, at once. */
  readSync(into: Uint8Array): number | null;
  /** Writes some of the bytes and says how many. */
  write(bytes: Uint8Array): Promise<number>;
  /** Resolves once the bytes are on the disk. */
  sync(): Promise<void>;
  /** What the file system says about the file. */
  stat(): Promise<{ size: number; isDirectory: boolean }>;
  /** Closes the file. */
  close(): void;
}

interface FileSystem {
  open(path: string, options?: Record<string, boolean>): Promise<OpenFile>;
  mkdir(path: string, options: { recursive: boolean }): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  remove(path: string): Promise<void>;
  stat(path: string): Promise<{ mtime: Date | null }>;
  readDir(path: string): AsyncIterable<{ name: string }>;
}

/** Where `writeAtomically` sends bytes. */
export interface FileWriter {
  /** Appends all of the bytes to the file. */
  write(bytes: Uint8Array): Promise<void>;
}

/** A file left by a killed process is removed by the next save once it is this old, in ms. */
const LEFTOVER_AGE = 60 * 60 * 1000;

function fileSystem(operation: string): FileSystem {
  const deno = (globalThis as { Deno?: FileSystem }).Deno;
  if (deno === undefined) {
    throw new Error(`${operation}: needs a file system, which this runtime does not have`);
  }
  return deno;
}

/** The text of an error, without its class. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Opens a file for reading.
 *
 * @throws Error if the file cannot be opened or is a directory; the message names it.
 */
export async function openForReading(operation: string, path: string): Promise<OpenFile> {
  let file: OpenFile;
  try {
    file = await fileSystem(operation).open(path, { read: true });
  } catch (error) {
    throw new Error(`${operation}: cannot open ${path}: ${reasonOf(error)}`, { cause: error });
  }
  if ((await file.stat()).isDirectory) {
    file.close();
    throw new Error(`${operation}: needs a file, but ${path} is a directory`);
  }
  return file;
}

/**
 * Writes a file so that its path holds either the old content or all of the new one, whatever
 * happens in between: the bytes go into a temporary file beside it, reach the disk, and are then
 * renamed. If `write` or the disk fails, the temporary file is removed and the old file is whole.
 * Missing folders are made.
 *
 * @throws Error if something cannot be written; the message names the path and the reason.
 *
 * @example
 * ```ts
 * import { writeAtomically } from "./files.ts";
 *
 * const path = `${await Deno.makeTempDir()}/notes.txt`;
 * await writeAtomically(path, async (file) => {
 *   await file.write(new TextEncoder().encode("step 1\n"));
 * });
 * console.assert(await Deno.readTextFile(path) === "step 1\n");
 * ```
 */
export async function writeAtomically(
  path: string,
  write: (file: FileWriter) => Promise<void>,
): Promise<void> {
  const fs = fileSystem("writeAtomically");
  const slash = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\"));
  const folder = slash < 0 ? "." : path.slice(0, slash + 1);
  const name = path.slice(slash + 1);
  const random = Math.random().toString(36).slice(2, 10);
  const temporary = `${folder}${slash < 0 ? "/" : ""}.${name}.${random}.tmp`;
  try {
    await fs.mkdir(folder, { recursive: true });
    await removeLeftovers(fs, folder, name);
    const file = await fs.open(temporary, { write: true, createNew: true });
    try {
      await write({
        async write(bytes: Uint8Array): Promise<void> {
          for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
        },
      });
      await file.sync();
    } finally {
      file.close();
    }
    await fs.rename(temporary, path);
  } catch (error) {
    await fs.remove(temporary).catch(() => {});
    throw new Error(`write ${path}: ${reasonOf(error)} (what was there before is unchanged)`, {
      cause: error,
    });
  }
}

/** Removes what a process killed in the middle of `writeAtomically` left beside the file. */
async function removeLeftovers(fs: FileSystem, folder: string, name: string): Promise<void> {
  for await (const entry of fs.readDir(folder)) {
    if (!entry.name.startsWith(`.${name}.`) || !entry.name.endsWith(".tmp")) continue;
    const path = `${folder}/${entry.name}`;
    try {
      const modified = (await fs.stat(path)).mtime?.getTime() ?? Date.now();
      if (Date.now() - modified > LEFTOVER_AGE) await fs.remove(path);
    } catch {
      // Another process removed it, or owns it: not ours to report.
    }
  }
}

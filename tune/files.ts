/**
 * The file operations that tune/ needs. Deno is touched only when a study has a file, so that a module
 * that imports this one still loads in a browser.
 *
 * @module
 */

/** An open file. */
export interface OpenFile {
  /** Writes some of the bytes and says how many. */
  writeSync(bytes: Uint8Array): number;
  /** Makes sure that what was written is on the disk. */
  syncDataSync(): void;
  /** Cuts the file. */
  truncateSync(length: number): void;
  /** Takes the file for this process alone; false where another one has it. */
  tryLockSync(exclusive: boolean): boolean;
  /** What it is. */
  statSync(): { isFile: boolean };
  /** Closes it. */
  close(): void;
}

interface FileSystem {
  readFileSync(path: string): Uint8Array;
  openSync(path: string, options: { append: boolean; create: boolean }): OpenFile;
}

/**
 * Opens a file to append to, for this process alone, and reads what it holds.
 *
 * @throws Error if the runtime has no file system, the file cannot be opened, or another process (or
 * another study of this one) has it open.
 */
export function openToAppend(path: string): { file: OpenFile; bytes: Uint8Array } {
  const deno = (globalThis as { Deno?: FileSystem }).Deno;
  if (deno === undefined) {
    throw new Error(`study ${path}: needs a file system, which this runtime does not have`);
  }
  let file: OpenFile | undefined;
  try {
    file = deno.openSync(path, { append: true, create: true });
    if (!file.statSync().isFile) throw new Error("is not a file"); // a device has no end to read to
    if (!file.tryLockSync(true)) {
      throw new Error("another process, or another study of this one, has it open");
    }
    return { file, bytes: deno.readFileSync(path) };
  } catch (error) {
    file?.close();
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`study ${path}: ${reason}`, { cause: error });
  }
}

/** Writes all of the bytes. */
export function writeAll(file: OpenFile, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
}

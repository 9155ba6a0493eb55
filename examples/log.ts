/** What a long run shows and writes while it goes. */

/** A line to a file for each step, as JSON. */
export class Metrics {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Begins the file, or goes on with the lines of a run up to `step`. */
  static async open(path: string, step: number): Promise<Metrics> {
    await Deno.mkdir(path.replace(/[^/\\]*$/, "") || ".", { recursive: true });
    const lines = step === 0 ? [] : await readMetrics(path).catch(() => []);
    const kept = lines.filter((record) => typeof record.step === "number" && record.step <= step);
    await Deno.writeTextFile(`${path}.tmp`, kept.map((r) => `${JSON.stringify(r)}\n`).join(""));
    await Deno.rename(`${path}.tmp`, path);
    return new Metrics(path);
  }

  /** Adds a line. */
  async write(record: object): Promise<void> {
    await Deno.writeTextFile(this.#path, `${JSON.stringify(record)}\n`, { append: true });
  }
}

/** The records of a file that {@linkcode Metrics} wrote; a line that a killed run left half is left out. */
export async function readMetrics(path: string): Promise<Record<string, unknown>[]> {
  const lines = (await Deno.readTextFile(path)).split("\n");
  return lines.flatMap((line) => {
    try {
      return line === "" ? [] : [JSON.parse(line) as Record<string, unknown>];
    } catch {
      return [];
    }
  });
}

/** A bar on a terminal, plain lines elsewhere; nothing where it is quiet, as on all ranks but one. */
export class Progress {
  readonly #quiet: boolean;
  readonly #terminal: boolean;
  readonly #started = performance.now();
  #first: { step: number; at: number } | null = null;
  #printed = 0;

  constructor(quiet = false, terminal: boolean = Deno.stdout.isTerminal()) {
    this.#quiet = quiet;
    this.#terminal = terminal;
  }

  /** Prints a line that stays. */
  line(text: string): void {
    if (this.#quiet) return;
    this.#clear();
    console.log(text);
  }

  /** Says what is being done now. */
  note(text: string): void {
    if (this.#terminal && !this.#quiet) this.#draw(text);
  }

  /** Shows a step of a loop that ends at `steps`. */
  step(step: number, steps: number, loss: number, tokensPerSecond: number): void {
    if (this.#quiet) return;
    this.#first ??= { step, at: performance.now() };
    const done = step - this.#first.step;
    const each = done > 0 ? (performance.now() - this.#first.at) / done : NaN;
    const left = Number.isNaN(each) ? "" : `, ${duration(each * (steps - step))} left`;
    const figures = `step ${step}/${steps}  loss ${loss.toFixed(3)}  ` +
      `${Math.round(tokensPerSecond)} tokens/s`;
    if (this.#terminal) {
      const width = 24, full = Math.round(width * step / steps);
      this.#draw(`[${"=".repeat(full)}${" ".repeat(width - full)}] ${figures}${left}`);
    } else if (performance.now() - this.#printed > 5000 || step === steps) {
      this.#printed = performance.now();
      console.log(`${figures}${left}`);
    }
  }

  /** Time since the start, in words. */
  elapsed(): string {
    return duration(performance.now() - this.#started);
  }

  #draw(text: string): void {
    this.#clear();
    Deno.stdout.writeSync(new TextEncoder().encode(text));
  }

  #clear(): void {
    if (this.#terminal) Deno.stdout.writeSync(new TextEncoder().encode("\r\x1b[2K"));
  }
}

function duration(milliseconds: number): string {
  const seconds = Math.round(milliseconds / 1000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

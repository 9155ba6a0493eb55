/** How a run is told to end: by Ctrl-C, or by the SIGTERM of a batch system or a launcher. */

import { isMainThread } from "node:worker_threads";

/** Exit codes: 128 and the signal's number. */
const CODES = { SIGINT: 130, SIGTERM: 143 } as const;

type StopSignal = keyof typeof CODES;

// Windows has no SIGTERM to hear.
const SIGNALS: readonly StopSignal[] = Deno.build.os === "windows"
  ? ["SIGINT"]
  : ["SIGINT", "SIGTERM"];

/** Within this time, in ms, a signal is the first one again: `deno task` hands on what the terminal has sent too. */
const AGAIN = 1000;

/**
 * Hears SIGINT and SIGTERM until it is disposed. The first is kept, and told to `onStop`, so that a run
 * can end where it likes; one that comes a second later or more ends the process at once.
 */
export class StopSignals implements Disposable {
  #code = 0;
  #at = 0;
  readonly #listeners: readonly (readonly [StopSignal, () => void])[];

  constructor(onStop: (signal: StopSignal) => void = () => {}) {
    this.#listeners = SIGNALS.map((signal) => [signal, () => this.#hear(signal, onStop)]);
    for (const [signal, listener] of this.#listeners) Deno.addSignalListener(signal, listener);
  }

  /** The exit code of who was told to stop: 130 by SIGINT, 143 by SIGTERM; 0 before. */
  get code(): number {
    return this.#code;
  }

  [Symbol.dispose](): void {
    for (const [signal, listener] of this.#listeners) Deno.removeSignalListener(signal, listener);
  }

  #hear(signal: StopSignal, onStop: (signal: StopSignal) => void): void {
    if (this.#code === 0) {
      this.#code = CODES[signal];
      this.#at = performance.now();
      onStop(signal);
    } else if (performance.now() - this.#at > AGAIN && isMainThread) {
      Deno.exit(CODES[signal]); // a thread would end itself only
    }
  }
}

/**
 * Turns of the event loop, for work that would hold it for long.
 *
 * @module
 */

/** Milliseconds of work, piece after piece, after which timers and signals get their turn. */
const TURN = 5;
let turn = 0;

/** Resolves in a later turn of the event loop, where this one has lasted long. */
export function yieldToEvents(): Promise<void> | void {
  const now = performance.now();
  if (now - turn < TURN) return;
  turn = now;
  const { setImmediate } = globalThis as unknown as {
    setImmediate?: (callback: () => void) => void;
  };
  return new Promise((resolve) => {
    if (setImmediate) return void setImmediate(resolve);
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });
}

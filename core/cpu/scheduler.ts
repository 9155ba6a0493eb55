/**
 * The scheduler, itself a WASM module: each thread runs it over the shared memory. Units of a stage
 * are taken one by one from a *ticket*, a 64-bit word that holds the stage's number and how many units
 * are left; taking one is a compare-and-exchange, so a unit belongs to who took it, and a thread that
 * comes late finds nothing to do and holds nobody up. A stage is over when as many units are done.
 *
 * The main thread alone opens stages. Those with little work it runs by itself, and no other thread
 * hears of them.
 *
 * @module
 */

import {
  add,
  atomic,
  type Code,
  type Func,
  i32,
  i64,
  type Local,
  type MemoryType,
  ModuleBuilder,
  mul,
} from "../wasm.ts";

/** Addresses of the words threads share; those written often have a cache line of their own. */
export const CONTROL = {
  /** i64: number of the stage, units left. */
  ticket: 64,
  /** Units of the stage that are done. */
  done: 128,
  /** Counted up to wake who sleeps on it. */
  wake: 192,
  /** The open stage. */
  stage: 256,
  /** The stage the main thread is at, and the unit it works on. */
  at: 260,
  /** A stage that failed on another thread. */
  failed: 264,
  /** Messages sent to each worker; a worker that has seen fewer returns to its event loop. */
  messages: 268,
  /** Threads that sleep. */
  sleepers: 272,
  /** Whether the main thread sleeps on `done`. */
  waiting: 276,
  /** Where scratch begins, and each thread's share. */
  scratch: 280,
  share: 284,
  /** A failed worker's message: length, and bytes. */
  messageBytes: 288,
  message: 292,
} as const;

/** Bytes of a failed worker's message. */
export const MESSAGE = 1000;

/** A stage in memory, in words. */
export const STAGE = {
  entry: 0,
  args: 1,
  units: 2,
  first: 3,
  parallel: 4,
  wake: 5,
  step: 6,
  words: 8,
};

/** Rounds of waiting before a thread sleeps; some 50 µs. */
const SPIN = 20000;
/** Milliseconds the main thread waits for a unit on another thread. */
const PATIENCE = 600000;

/** What `run` returns. */
export const RAN = { fine: 0, failed: 1, lost: 2 } as const;

/**
 * Exports `run(list, count)` for the main thread, and `work(thread, seen)` for the others, which
 * returns when there are more messages than `seen`. `mayBlock`: the main thread may sleep.
 */
export function schedulerModule(memory: MemoryType, mayBlock: boolean): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder(memory, true);
  const unitType = module.type(["i32", "i32", "i32"]);
  const word = (stage: Code, index: number) => i32.load(stage, 4 * index);

  /** Takes units of the open stage while there are any. */
  const takeUnits = (f: Func, scratch: Code, mayTake: (leave: () => void) => void) => {
    const ticket = f.local("i64");
    f.loop((leave) => {
      f.set(ticket, atomic.load64(CONTROL.ticket));
      f.if(i32.eqz(i32.wrap_i64(ticket)), leave);
      mayTake(leave);
      const left = f.let(i32.wrap_i64(ticket));
      const next = i64.sub(ticket, i64.const(1));
      f.if(i64.eq(atomic.exchange64(CONTROL.ticket, ticket, next), ticket), () => {
        const stage = f.let(i32.load(CONTROL.stage));
        const unit = add(word(stage, STAGE.first), i32.sub(word(stage, STAGE.units), left));
        f.callIndirect(
          unitType,
          word(stage, STAGE.entry),
          word(stage, STAGE.args),
          unit,
          scratch,
        );
        f.drop(atomic.add(CONTROL.done, 1));
        f.if(atomic.load(CONTROL.waiting), () => f.drop(atomic.notify(CONTROL.done, 1)));
      });
    });
  };

  module.func(["i32", "i32"], (f) => {
    const [list, count] = f.params;
    const scratch = f.let(i32.load(CONTROL.scratch));
    f.for(0, count, 1, (i) => {
      const stage = f.let(add(list, mul(i, 4 * STAGE.words)));
      f.store(CONTROL.at, stage);
      const units = f.let(word(stage, STAGE.units));
      f.if(word(stage, STAGE.parallel), () => {
        openStage(f, stage, units);
        takeUnits(f, scratch, () => {});
        awaitUnits(f, units, mayBlock);
        f.if(atomic.load(CONTROL.failed), () => f.return(RAN.failed));
      }, () => {
        const first = f.let(word(stage, STAGE.first));
        f.for(first, add(first, units), 1, (unit) => {
          f.callIndirect(
            unitType,
            word(stage, STAGE.entry),
            word(stage, STAGE.args),
            unit,
            scratch,
          );
        });
      });
    });
    f.return(RAN.fine);
  }, { name: "run", result: "i32" });

  module.func(["i32", "i32"], (f) => {
    const [thread, seen] = f.params;
    const rounds = f.local("i32");
    const hasMail = () => i32.ne(atomic.load(CONTROL.messages), seen);
    const idle = () => i32.eqz(i32.wrap_i64(atomic.load64(CONTROL.ticket)));
    f.loop(() => {
      f.set(rounds, 0);
      f.loop((open) => {
        f.if(hasMail(), () => f.return());
        f.if(i32.eqz(idle()), open);
        f.set(rounds, add(rounds, 1));
        f.if(i32.gt_u(rounds, SPIN), () => {
          const wake = f.let(atomic.load(CONTROL.wake));
          f.drop(atomic.add(CONTROL.sleepers, 1));
          // A stage opened, or a message sent, after this look finds a sleeper to wake.
          f.if(i32.and(idle(), i32.eqz(hasMail())), () => {
            f.drop(atomic.wait(CONTROL.wake, wake, -1));
          });
          f.drop(atomic.add(CONTROL.sleepers, -1));
          f.set(rounds, 0);
        });
      });
      const share = mul(thread, i32.load(CONTROL.share));
      const scratch = f.let(add(i32.load(CONTROL.scratch), share));
      // A unit may need a function that comes with a message: the look for mail follows the look at
      // the ticket, and the exchange fails if the ticket has changed since.
      takeUnits(f, scratch, () => f.if(hasMail(), () => f.return()));
    });
  }, { name: "work" });
  return module.encode();
}

function openStage(f: Func, stage: Local, units: Local): void {
  f.storeAtomic(CONTROL.stage, stage);
  f.storeAtomic(CONTROL.done, 0);
  const number = i64.add(i64.shr_u(atomic.load64(CONTROL.ticket), i64.const(32)), i64.const(1));
  f.storeAtomic(
    CONTROL.ticket,
    i64.or(i64.shl(number, i64.const(32)), i64.extend_i32_u(units)),
  );
  f.if(i32.load(stage, 4 * STAGE.wake), () => {
    f.if(atomic.load(CONTROL.sleepers), () => {
      f.drop(atomic.add(CONTROL.wake, 1));
      f.drop(atomic.notify(CONTROL.wake, -1));
    });
  });
}

/** Waits until `units` units are done; returns from the function if none answers. */
function awaitUnits(f: Func, units: Local, mayBlock: boolean): void {
  const rounds = f.let(0);
  const sleeps = f.let(0);
  f.loop((leave) => {
    const done = f.let(atomic.load(CONTROL.done));
    f.if(i32.eq(done, units), leave);
    if (!mayBlock) return;
    f.set(rounds, add(rounds, 1));
    f.if(i32.gt_u(rounds, SPIN), () => {
      f.storeAtomic(CONTROL.waiting, 1);
      // A unit done since the look at `done` makes the wait return at once.
      f.drop(atomic.wait(CONTROL.done, done, 1000000));
      f.storeAtomic(CONTROL.waiting, 0);
      f.set(sleeps, add(sleeps, 1));
      f.if(i32.gt_u(sleeps, PATIENCE), () => f.return(RAN.lost));
    });
  });
}

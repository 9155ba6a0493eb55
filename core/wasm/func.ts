/**
 * Building WASM functions and modules.
 *
 * @module
 */

import { type Code, i32, type Int, int, Local, unsigned, type ValueType } from "./code.ts";

const TYPE: Record<ValueType, number> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

/** A function under construction: locals, statements and control flow. */
export class Func {
  readonly params: readonly Local[];
  readonly result: ValueType | null;
  readonly bytes: number[] = [];
  readonly #locals: ValueType[] = [];
  readonly #prologue: number[] = [];
  readonly #hoisted = new Map<string, Local>();
  #depth = 0;
  /** The statements of {@linkcode interleave} so far, of the one at hand. */
  #apart: (readonly number[])[] | null = null;

  constructor(params: readonly ValueType[], result: ValueType | null = null) {
    this.params = params.map((type, i) => new Local(type, i));
    this.result = result;
  }

  /** A new local, zero at the start of the function. */
  local(type: ValueType): Local {
    this.#locals.push(type);
    return new Local(type, this.params.length + this.#locals.length - 1);
  }

  /** A new local that holds `value`. */
  let(value: Int): Local {
    const code = int(value);
    const local = this.local(code.type);
    this.set(local, code);
    return local;
  }

  /**
   * A local that holds `value` from the start of the function on, however deep in loops it is asked
   * for. `value` is made of constants, parameters and other hoisted values.
   */
  hoist(value: Code): Local {
    const key = value.bytes.join();
    let local = this.#hoisted.get(key);
    if (local === undefined) {
      local = this.local(value.type);
      this.#hoisted.set(key, local);
      for (const b of [...value.bytes, 0x21, ...unsigned(local.index)]) this.#prologue.push(b);
    }
    return local;
  }

  /** Assigns. */
  set(local: Local, value: Int): void {
    this.#push([...int(value).bytes, 0x21, ...unsigned(local.index)]);
  }

  /** Evaluates and drops. */
  drop(value: Code): void {
    this.#push([...value.bytes, 0x1a]);
  }

  /** Ends the function with `value`. */
  return(value?: Int): void {
    if (value !== undefined) this.#push(int(value).bytes);
    this.#push([0x0f]);
  }

  /** Stores an i32, f32 or vector. */
  store(address: Int, value: Int, offset = 0): void {
    const code = int(value);
    const op = { i32: [0x36, 2], f32: [0x38, 2], f64: [0x39, 3], i64: [0x37, 3], v128: null }[
      code.type
    ] ?? [0xfd, 0x0b, 0];
    this.#push([...int(address).bytes, ...code.bytes, ...op, ...unsigned(offset)]);
  }

  /** Stores the low 16 bits of an i32. */
  store16(address: Int, value: Int, offset = 0): void {
    this.#push([...int(address).bytes, ...int(value).bytes, 0x3b, 1, ...unsigned(offset)]);
  }

  /** Stores one 16-, 32- or 64-bit lane of a vector. */
  storeLane(bits: 16 | 32 | 64, address: Int, value: Code, index: number, offset = 0): void {
    const op = bits === 16 ? 0x59 : bits === 32 ? 0x5a : 0x5b;
    this.#push([
      ...int(address).bytes,
      ...value.bytes,
      0xfd,
      op,
      0,
      ...unsigned(offset),
      index,
    ]);
  }

  /** Atomically stores an i32 or i64. */
  storeAtomic(address: Int, value: Int, offset = 0): void {
    const code = int(value);
    const op = code.type === "i64" ? [0x18, 3] : [0x17, 2];
    this.#push([...int(address).bytes, ...code.bytes, 0xfe, ...op, ...unsigned(offset)]);
  }

  /** Fills bytes with zero. */
  zero(address: Int, bytes: Int): void {
    this.#push([
      ...int(address).bytes,
      ...int(0).bytes,
      ...int(bytes).bytes,
      0xfc,
      0x0b,
      0x00,
    ]);
  }

  /** Runs `then` if `condition` is not zero, else `otherwise`. */
  if(condition: Int, then: () => void, otherwise?: () => void): void {
    const { constant } = int(condition);
    if (constant !== null) {
      if (constant !== 0) then();
      else otherwise?.();
      return;
    }
    this.#push([...int(condition).bytes, 0x04, 0x40]);
    this.#nest(then);
    if (otherwise) {
      this.#push([0x05]);
      this.#nest(otherwise);
    }
    this.#push([0x0b]);
  }

  /** Runs `body`, which may leave by calling `leave`. */
  block(body: (leave: () => void) => void): void {
    this.#push([0x02, 0x40]);
    const target = this.#depth;
    this.#nest(() => body(() => this.#push([0x0c, ...unsigned(this.#depth - target - 1)])));
    this.#push([0x0b]);
  }

  /** Repeats `body` until it calls `leave`. */
  loop(body: (leave: () => void) => void): void {
    this.block((leave) => {
      this.#push([0x03, 0x40]);
      const target = this.#depth;
      this.#nest(() => {
        body(leave);
        this.#push([0x0c, ...unsigned(this.#depth - target - 1)]);
      });
      this.#push([0x0b]);
    });
  }

  /** Repeats `body` for `i` = its value now, and on in steps while below `to`; leaves it there. */
  upTo(i: Local, to: Int, step: Int, body: () => void): void {
    this.if(i32.lt_s(i, to), () => {
      this.#push([0x03, 0x40]);
      const target = this.#depth;
      this.#nest(() => {
        body();
        this.set(i, i32.add(i, step));
        this.#push([
          ...i32.lt_s(i, to).bytes,
          0x0d,
          ...unsigned(this.#depth - target - 1),
        ]);
      });
      this.#push([0x0b]);
    });
  }

  /** Repeats `body` while the condition it gives holds; at least once. */
  repeat(body: () => Int): void {
    this.#push([0x03, 0x40]);
    const target = this.#depth;
    this.#nest(() => {
      const condition = int(body());
      this.#push([...condition.bytes, 0x0d, ...unsigned(this.#depth - target - 1)]);
    });
    this.#push([0x0b]);
  }

  /** A loop over a new local from `from` below `to`. */
  for(from: Int, to: Int, step: Int, body: (i: Local) => void): void {
    const i = this.let(from);
    this.upTo(i, to, step, () => body(i));
  }

  /** Calls a function without a result. */
  call(callee: Callee, ...args: Int[]): void {
    this.#push([...args.flatMap((a) => int(a).bytes), 0x10, ...unsigned(callee.index)]);
  }

  /** Calls entry `entry` of table 0, a function of type `type` without a result. */
  callIndirect(type: number, entry: Int, ...args: Int[]): void {
    this.#push([
      ...args.flatMap((a) => int(a).bytes),
      ...int(entry).bytes,
      0x11,
      ...unsigned(type),
      0,
    ]);
  }

  /**
   * What `make` gives for 0, 1 and on below `count`, with their statements in turns: a processor looks
   * ahead some hundred instructions, and should find there several of such chains, not one. No loops
   * or branches inside.
   */
  interleave<T>(count: number, make: (u: number) => T): T[] {
    const outer = this.#apart;
    const chains: (readonly number[])[][] = [];
    const made = Array.from({ length: count }, (_, u) => {
      chains.push(this.#apart = []);
      return make(u);
    });
    this.#apart = outer;
    const longest = Math.max(...chains.map((chain) => chain.length));
    for (let i = 0; i < longest; i++) {
      for (const chain of chains) if (i < chain.length) this.#push(chain[i]);
    }
    return made;
  }

  /** The function as the code section holds it. */
  encode(): Uint8Array<ArrayBuffer> {
    const groups: [number, ValueType][] = [];
    for (const type of this.#locals) {
      const last = groups[groups.length - 1];
      if (last !== undefined && last[1] === type) last[0]++;
      else groups.push([1, type]);
    }
    const locals = [
      ...unsigned(groups.length),
      ...groups.flatMap(([n, type]) => [...unsigned(n), TYPE[type]]),
    ];
    const { length } = this.bytes;
    const size = locals.length + this.#prologue.length + length + 1;
    const head = [...unsigned(size), ...locals, ...this.#prologue];
    const out = new Uint8Array(head.length + length + 1);
    out.set(head);
    out.set(this.bytes, head.length);
    out[out.length - 1] = 0x0b;
    return out;
  }

  #push(bytes: readonly number[]): void {
    if (this.#apart) this.#apart.push(bytes);
    else for (const b of bytes) this.bytes.push(b);
  }

  #nest(body: () => void): void {
    if (this.#apart) throw new Error("interleave: needs code without loops and branches");
    this.#depth++;
    body();
    this.#depth--;
  }
}

/** A function of the module under construction. */
export interface Callee {
  readonly index: number;
}

/** The memory a module imports, as `env.memory`. */
export interface MemoryType {
  readonly shared: boolean;
  /** 64 KiB pages. */
  readonly maximum: number;
}

/** A module under construction: functions over one imported memory (and one table, if asked for). */
export class ModuleBuilder {
  readonly #memory: MemoryType;
  readonly #table: boolean;
  readonly #types: string[] = [];
  readonly #functions: { readonly func: Func; readonly type: number }[] = [];
  readonly #exports: (readonly [string, number])[] = [];

  constructor(memory: MemoryType, table = false) {
    this.#memory = memory;
    this.#table = table;
  }

  /** The number of a function type. */
  type(params: readonly ValueType[], result: ValueType | null = null): number {
    const key = JSON.stringify([params, result]);
    const known = this.#types.indexOf(key);
    if (known >= 0) return known;
    return this.#types.push(key) - 1;
  }

  /** Adds a function, exported where `name` is given. */
  func(
    params: readonly ValueType[],
    build: (f: Func) => void,
    options: { readonly name?: string; readonly result?: ValueType } = {},
  ): Callee {
    const func = new Func(params, options.result ?? null);
    build(func);
    return this.add(func, options.name);
  }

  /** Adds a function that is built already. */
  add(func: Func, name?: string): Callee {
    const type = this.type(func.params.map((p) => p.type), func.result);
    const index = this.#functions.push({ func, type }) - 1;
    if (name !== undefined) this.#exports.push([name, index]);
    return { index };
  }

  /** The module's bytes. */
  encode(): Uint8Array<ArrayBuffer> {
    const chunks: Uint8Array[] = [];
    const put = (bytes: readonly number[]) => chunks.push(Uint8Array.from(bytes));
    const text = (s: string) => [...unsigned(s.length), ...new TextEncoder().encode(s)];
    const section = (id: number, items: readonly (readonly number[])[]) => {
      const body = [...unsigned(items.length), ...items.flat()];
      put([id, ...unsigned(body.length), ...body]);
    };
    put([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]);
    section(
      1,
      this.#types.map((key) => {
        const [params, result] = JSON.parse(key) as [ValueType[], ValueType | null];
        return [
          0x60,
          ...unsigned(params.length),
          ...params.map((t) => TYPE[t]),
          ...(result === null ? [0] : [1, TYPE[result]]),
        ];
      }),
    );
    const { shared, maximum } = this.#memory;
    section(2, [
      [...text("env"), ...text("memory"), 2, shared ? 3 : 1, 1, ...unsigned(maximum)],
      ...(this.#table ? [[...text("env"), ...text("table"), 1, 0x70, 0, 1]] : []),
    ]);
    section(3, this.#functions.map((f) => unsigned(f.type)));
    section(7, this.#exports.map(([name, index]) => [...text(name), 0, ...unsigned(index)]));
    // The code section may be long: it is not built by spreading.
    const bodies = this.#functions.map(({ func }) => func.encode());
    const count = unsigned(bodies.length);
    put([10, ...unsigned(count.length + bodies.reduce((n, b) => n + b.length, 0)), ...count]);
    chunks.push(...bodies);
    const out = new Uint8Array(chunks.reduce((n, c) => n + c.length, 0));
    let at = 0;
    for (const chunk of chunks) {
      out.set(chunk, at);
      at += chunk.length;
    }
    return out;
  }
}

/** Whether a function that evaluates `code` validates on this machine. */
export function validates(code: Code): boolean {
  const module = new ModuleBuilder({ shared: false, maximum: 1 });
  module.func([], (f) => f.drop(code));
  return WebAssembly.validate(module.encode());
}

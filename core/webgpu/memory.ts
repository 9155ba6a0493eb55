/**
 * Device memory and its accounts, and the errors of a device, which arrive late.
 *
 * @module
 */

import type { BackendCounters, Buffer } from "../kernel.ts";
import { USAGE } from "./device.ts";

/** A buffer on the GPU. */
export class WebGpuBuffer implements Buffer {
  readonly bytes: number;
  readonly gpu: GPUBuffer;
  /** Whether it was freed. */
  freed = false;

  /** Made by {@linkcode Memory.allocate}. */
  constructor(gpu: GPUBuffer, bytes: number) {
    this.gpu = gpu;
    this.bytes = bytes;
  }
}

/** Usage of a buffer that kernels bind. */
export const STORAGE_USAGE: number = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;

/**
 * Errors a device reported and nobody has seen yet. A GPU error is found when the command is checked,
 * not when it is given, so it is kept until the next run, read or fetch throws it.
 */
export class DeviceErrors {
  readonly #device: GPUDevice;
  #first: Error | null = null;
  #lost: Error | null = null;
  #closed = false;
  readonly #open = new Set<Promise<void>>();

  constructor(device: GPUDevice) {
    this.#device = device;
    device.addEventListener("uncapturederror", (event) => {
      const { error } = event as GPUUncapturedErrorEvent;
      this.note("uncaptured", error);
      event.preventDefault();
    });
    device.lost.then((info) => {
      if (!this.#closed) {
        this.#lost = new Error(`webgpu: the device was lost: ${info.message || info.reason}`);
      }
    });
  }

  /** Keeps an error that `what` caused; the first one counts. */
  note(what: string, error: GPUError): void {
    const kind = error.constructor.name.replace(/^GPU|Error$/g, "").toLowerCase();
    this.#first ??= new Error(`webgpu: ${what}: ${kind} error: ${error.message}`);
  }

  /** Runs `make` and keeps the error it causes, said to come from `what`. */
  watch<T>(what: string | (() => string), filters: GPUErrorFilter[], make: () => T): T {
    for (const filter of filters) this.#device.pushErrorScope(filter);
    try {
      return make();
    } finally {
      for (let i = 0; i < filters.length; i++) {
        const pending = this.#device.popErrorScope().then((error) => {
          if (error) this.note(typeof what === "string" ? what : what(), error);
        }, () => {/* a lost device has told its own story */});
        this.#open.add(pending);
        pending.finally(() => this.#open.delete(pending));
      }
    }
  }

  /** Waits for what {@linkcode watch} watches, then throws as {@linkcode check} does. */
  async settle(): Promise<void> {
    await Promise.all(this.#open);
    this.check();
  }

  /** Throws the kept error, once; a lost device throws for ever. */
  check(): void {
    if (this.#lost) throw this.#lost;
    if (this.#closed) throw new Error("webgpu: the backend is closed");
    const error = this.#first;
    this.#first = null;
    if (error) throw error;
  }

  /** From here on the loss of the device is no error. */
  close(): void {
    this.#closed = true;
  }
}

/** Allocates and counts. */
export class Memory {
  readonly #device: GPUDevice;
  readonly #errors: DeviceErrors;
  readonly counters: BackendCounters = {
    buffers: 0,
    pipelines: 0,
    bindings: 0,
    bytes: 0,
    peakBytes: 0,
  };

  constructor(device: GPUDevice, errors: DeviceErrors) {
    this.#device = device;
    this.#errors = errors;
  }

  /** A new buffer of whole words. */
  allocate(bytes: number, usage: number, what: string): WebGpuBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    const most = this.#device.limits.maxBufferSize;
    if (size > most) {
      throw new Error(
        `webgpu: ${what} of ${megabytes(size)} needs one buffer, and the device allows ` +
          `${megabytes(most)} (${megabytes(this.counters.bytes)} are allocated)`,
      );
    }
    const gpu = this.#errors.watch(
      () =>
        `${what} of ${megabytes(size)}, with ${megabytes(this.counters.bytes)} allocated in all`,
      ["validation", "out-of-memory"],
      () => this.#device.createBuffer({ label: what, size, usage }),
    );
    this.counters.buffers++;
    this.counters.bytes += size;
    this.counters.peakBytes = Math.max(this.counters.peakBytes, this.counters.bytes);
    return new WebGpuBuffer(gpu, size);
  }

  /** Gives the memory back once the work submitted so far is done. */
  free(buffer: WebGpuBuffer): void {
    if (buffer.freed) return;
    buffer.freed = true;
    buffer.gpu.destroy();
    this.counters.bytes -= buffer.bytes;
  }
}

function megabytes(bytes: number): string {
  return bytes < 1e6 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}

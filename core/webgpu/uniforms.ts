/**
 * A program's small integers in one uniform buffer: scalars, which each run writes, and the parameters
 * of its passes, which are written once.
 *
 * @module
 */

import type { CompiledPass } from "./compile.ts";
import { USAGE } from "./device.ts";
import type { Memory, WebGpuBuffer } from "./memory.ts";

// A uniform binding begins at a multiple of this many bytes.
const SLICE = 256;

/** The uniform buffer of a program. */
export class Uniforms {
  /** Null where there are neither scalars nor parameters. */
  readonly buffer: WebGpuBuffer | null = null;
  /** Bytes of the scalars, which come first: whole slices, so that the last step's is inside too. */
  readonly scalarBytes: number;
  readonly #offsets = new Map<CompiledPass, number>();

  /** Allocates, and writes the parameters. */
  constructor(
    device: GPUDevice,
    memory: Memory,
    passes: readonly CompiledPass[],
    scalarWords: number,
  ) {
    let end = this.scalarBytes = Math.ceil(scalarWords * 4 / SLICE) * SLICE;
    for (const pass of passes) {
      if (pass.parameters.length === 0 || this.#offsets.has(pass)) continue;
      this.#offsets.set(pass, end);
      end += Math.ceil(pass.parameters.byteLength / SLICE) * SLICE;
    }
    if (end === 0) return;
    const usage = USAGE.UNIFORM | USAGE.COPY_DST;
    this.buffer = memory.allocate(end, usage, "a program's scalars and parameters");
    if (this.#offsets.size === 0) return;
    const words = new Uint32Array((end - this.scalarBytes) / 4);
    for (const [{ parameters }, offset] of this.#offsets) {
      words.set(parameters, (offset - this.scalarBytes) / 4);
    }
    device.queue.writeBuffer(this.buffer.gpu, this.scalarBytes, words);
  }

  /** The binding of the parameters of `pass`. */
  parameters(pass: CompiledPass): GPUBufferBinding {
    return {
      buffer: this.buffer!.gpu,
      offset: this.#offsets.get(pass),
      size: Math.ceil(pass.parameters.length / 4) * 16,
    };
  }
}

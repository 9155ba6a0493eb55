/**
 * The backends. This is the only file outside `cpu/` and `webgpu/` that names them.
 *
 * @module
 */

import { createCpuBackend } from "./cpu/backend.ts";
import type { Backend } from "./kernel.ts";
import { createWebGpuBackend, webGpuAdapterProblem } from "./webgpu/backend.ts";

/** Opens the backend of that name; `auto` is a real GPU, else the CPU. Throws where it is not there. */
export async function openBackend(
  name: "auto" | "cpu" | "webgpu",
  threads?: number,
): Promise<Backend> {
  if (name === "cpu") return await createCpuBackend({ threads });
  const gpu = await createWebGpuBackend({ software: name === "webgpu" });
  if (gpu) return gpu;
  if (name === "auto") return await createCpuBackend({ threads });
  throw new Error(webGpuAdapterProblem());
}

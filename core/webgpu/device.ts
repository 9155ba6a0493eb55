/**
 * Finding a GPU, and a device with the adapter's own limits.
 *
 * @module
 */

import type { Subgroup, WgslTarget } from "../wgsl.ts";

/** Which adapters may be used. */
export interface WebGpuOptions {
  /** Use a CPU behind a WebGPU driver (lavapipe, SwiftShader); else only a real GPU will do. */
  readonly software?: boolean;
}

/** A device and what generators must know of it. */
export interface OpenDevice {
  readonly device: GPUDevice;
  readonly description: string;
  readonly target: WgslTarget;
}

/** Buffer usages, by their numbers in the standard: not every type library declares the names. */
export const USAGE = {
  MAP_READ: 0x1,
  COPY_SRC: 0x4,
  COPY_DST: 0x8,
  UNIFORM: 0x40,
  STORAGE: 0x80,
} as const;

/** `GPUMapMode.READ`, by its number. */
export const MAP_READ_MODE = 1;

/** `GPUShaderStage.COMPUTE`, by its number. */
export const COMPUTE_STAGE = 4;

// Limits that a device grants only where they are asked for.
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupSizeY",
  "maxComputeWorkgroupStorageSize",
  "maxComputeWorkgroupsPerDimension",
] as const;

const INSTALL =
  "On Linux install the GPU's Vulkan driver (NVIDIA's own, or mesa-vulkan-drivers for AMD and Intel) " +
  "and libvulkan1; on macOS and Windows the system has one. In a browser, WebGPU needs https or localhost.";

const SOFTWARE_INSTALL =
  "A software adapter for tests: install mesa-vulkan-drivers and libvulkan1 (lavapipe).";

let problem = "";

/** Why the last search found no device, and what to install; empty where one was found. */
export function webGpuAdapterProblem(): string {
  return problem;
}

/** A device of the best adapter, or null: {@linkcode webGpuAdapterProblem} then says why. */
export async function openDevice(options: WebGpuOptions): Promise<OpenDevice | null> {
  problem = "";
  const gpu = (globalThis.navigator as { gpu?: GPU } | undefined)?.gpu;
  if (!gpu) {
    problem =
      "webgpu: this runtime has no navigator.gpu. Use Deno 2.8 or newer, or a browser with " +
      "WebGPU.";
    return null;
  }
  // A failed request may use the adapter up, so each attempt asks for its own.
  const wanted = [["shader-f16", "subgroups"], ["subgroups"], ["shader-f16"], []];
  let refused = "";
  for (const features of wanted) {
    const adapter = await adapterOf(gpu, options);
    if (!adapter) return null;
    try {
      return await open(adapter, features as GPUFeatureName[]);
    } catch (error) {
      refused = error instanceof Error ? error.message : String(error);
    }
  }
  problem = `webgpu: the adapter gave no device: ${refused}`;
  return null;
}

async function adapterOf(gpu: GPU, options: WebGpuOptions): Promise<GPUAdapter | null> {
  const software = options.software ?? false;
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" }) ??
    (software ? await gpu.requestAdapter({ forceFallbackAdapter: true }) : null);
  if (!adapter) {
    problem = `webgpu: no adapter. ${INSTALL}${software ? ` ${SOFTWARE_INSTALL}` : ""}`;
    return null;
  }
  if (isSoftware(adapter) && !software) {
    problem =
      `webgpu: the only adapter is software (${describe(adapter)}), which is used where it ` +
      `is asked for by name. ${INSTALL}`;
    return null;
  }
  return adapter;
}

function describe(adapter: GPUAdapter): string {
  const { vendor, architecture, device, description } = adapter.info;
  const words = [description || device, vendor, architecture].filter((word) => word);
  return words.join(", ") || "unnamed adapter";
}

function isSoftware(adapter: GPUAdapter): boolean {
  const info = adapter.info as GPUAdapterInfo & { isFallbackAdapter?: boolean };
  return info.isFallbackAdapter === true ||
    /llvmpipe|lavapipe|swiftshader|basic render/i.test(
      `${info.description} ${info.device} ${info.architecture} ${info.vendor}`,
    );
}

async function open(adapter: GPUAdapter, features: GPUFeatureName[]): Promise<OpenDevice> {
  const requiredLimits: Record<string, number> = {};
  for (const name of LIMITS) requiredLimits[name] = adapter.limits[name];
  const device = await adapter.requestDevice({
    label: "graft",
    requiredFeatures: features,
    requiredLimits,
  });
  const { limits } = device;
  return {
    device,
    description: describe(adapter),
    target: {
      software: isSoftware(adapter),
      subgroup: (features as string[]).includes("subgroups")
        ? await subgroupOf(adapter, device)
        : null,
      maxInvocations: Math.min(
        limits.maxComputeInvocationsPerWorkgroup,
        limits.maxComputeWorkgroupSizeX,
      ),
      maxWorkgroupBytes: limits.maxComputeWorkgroupStorageSize,
      maxStorageBuffers: limits.maxStorageBuffersPerShaderStage,
      maxWorkgroups: limits.maxComputeWorkgroupsPerDimension,
    },
  };
}

async function subgroupOf(adapter: GPUAdapter, device: GPUDevice): Promise<Subgroup | null> {
  const { subgroupMinSize: size, subgroupMaxSize: most } = adapter.info;
  if (!size || size !== most) return null;
  // Implementations disagree on whether a module must say that it uses subgroups: asked, not guessed.
  for (const directive of ["enable subgroups;", ""]) {
    device.pushErrorScope("validation");
    device.createShaderModule({
      label: "subgroup probe",
      code: `${directive}
@group(0) @binding(0) var<storage, read_write> b: array<f32>;
@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
  b[i] = subgroupAdd(b[i]);
}`,
    });
    if (await device.popErrorScope() === null) return { size, directive };
  }
  return null;
}

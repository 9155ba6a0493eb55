/**
 * Runs a test on every backend there is.
 *
 * @module
 */

import { type Device, init } from "@graft/ml";

/**
 * Registers `name` once for the cpu and once for webgpu (a software adapter will do). Where there is no
 * adapter the webgpu test is skipped and says why; with `GRAFT_REQUIRE_WEBGPU=1` it fails instead.
 */
export function forEachDevice(
  name: string,
  fn: (device: Device, t: Deno.TestContext) => Promise<void>,
): void {
  for (const kind of ["cpu", "webgpu"] as const) {
    Deno.test({
      name: `${name} (${kind})`,
      // Workers and the GPU outlive a test by a moment.
      sanitizeOps: false,
      sanitizeResources: false,
      fn: async (t) => {
        let device: Device;
        try {
          device = await init({ device: kind });
        } catch (error) {
          if (kind === "cpu" || Deno.env.get("GRAFT_REQUIRE_WEBGPU") === "1") throw error;
          console.log(`skipped: ${(error as Error).message}`);
          return;
        }
        try {
          await fn(device, t);
        } finally {
          await device.close();
        }
      },
    });
  }
}

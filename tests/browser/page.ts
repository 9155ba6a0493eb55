/** What the browser test runs in a page: a few steps on each backend, the losses posted back. */

import { init, manualSeed, normal, Variable } from "@graft/ml";
import { AdamW } from "@graft/ml/optim";

/** Losses of five steps of a small regression. */
export async function losses(device: "cpu" | "webgpu"): Promise<number[]> {
  const opened = await init({ device });
  manualSeed(1);
  const w = new Variable(normal([8, 4]), { requiresGrad: true });
  const optimizer = new AdamW([w], { lr: 0.1 });
  const found: number[] = [];
  for (let step = 0; step < 5; step++) {
    const x = normal([16, 8]);
    const loss = x.matmul(w).sub(x.slice(1, 0, 4)).square().mean();
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    found.push(await loss.item());
  }
  await opened.close();
  return found;
}

if ("document" in globalThis) {
  const report: Record<string, unknown> = {};
  for (const device of ["cpu", "webgpu"] as const) {
    try {
      report[device] = await losses(device);
    } catch (error) {
      report[device] = String(error);
    }
  }
  await fetch("/report", { method: "POST", body: JSON.stringify(report) });
}

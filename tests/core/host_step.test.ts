/** Host steps: asynchronous work between the kernels of a plan. */

import { assertEquals, assertRejects } from "@std/assert";
import { type Device, type Tensor, tensor, Variable } from "@graft/ml";
import { hoisted, internally } from "../../core/graph.ts";
import { recordHost } from "../../core/host.ts";
import { forEachDevice } from "../devices.ts";

type Log = string[];

/** Doubles `inputs` on the host, after some turns of the event loop. */
function double(device: Device, label: string, inputs: Tensor[], log: Log): Tensor<"f32">[] {
  return internally(() =>
    hoisted(() =>
      recordHost({
        label,
        device,
        inputs,
        outputs: inputs.map(({ shape, dtype }) => ({ shape, dtype })),
        run: async (bytes) => {
          log.push(`${label} begins`);
          await new Promise((resolve) => setTimeout(resolve, 5));
          log.push(`${label} ends`);
          return bytes.map((b) => new Float32Array(b).map((x) => 2 * x));
        },
      }) as Tensor<"f32">[]
    )
  );
}

forEachDevice(
  "host step: values pass through it, and plans with it are replayed",
  async (device) => {
    const state = new Variable(tensor([1, 2, 3]));
    const log: Log = [];
    const values: number[][] = [];
    for (let i = 0; i < 4; i++) {
      const x = tensor([i, i + 1, i + 2]);
      const [a, b] = double(device, "first", [x.mul(x), state.add(1)], log);
      const [c] = double(device, "second", [x.add(1).reshape(3, 1).mul(i)], log);
      state.assign(b);
      const sum = a.add(c.reshape(3)).add(x);
      values.push([...await sum.data(), ...await state.data()]);
    }
    const expected = [0, 1, 2, 3].map((i) => {
      const sums = [i, i + 1, i + 2].map((x) => 2 * x * x + 2 * (x + 1) * i + x);
      return [...sums, ...[1, 2, 3].map((v) => (v + 2) * 2 ** (i + 1) - 2)];
    });
    assertEquals(values, expected);
    assertEquals(device.flushes.built, 1);
    const order = ["first begins", "second begins", "first ends", "second ends"];
    assertEquals(log, [order, order, order, order].flat());
  },
);

forEachDevice("host step: kernels that do not wait for it run beside it", async (device) => {
  const log: Log = [];
  const x = tensor([1, 2]);
  const early = internally(() => x.exp().sum());
  const late = internally(() => early.mul(3).exp().sum()); // recorded before, and yet not waited for
  const [y] = double(device, "step", [early], log);
  const sum = y.add(late);
  await sum.data();
  assertEquals(device.lastReport!.labels.indexOf("step"), 1);
  assertEquals(device.lastReport!.labels.at(-1)!.includes("add"), true);
});

forEachDevice("host step: its error rejects the flush, and it never runs twice", async (device) => {
  const x = tensor([1, 2]);
  const fails = (): Tensor =>
    recordHost({
      label: "the all-reduce of w",
      device,
      inputs: [x.exp()],
      outputs: [{ shape: [2], dtype: "f32" }],
      run: () => Promise.reject(new Error("the link is down")),
    })[0];
  await assertRejects(() => fails().mul(2).data(), Error, "the link is down");
  const log: Log = [];
  const wide = tensor(new Float32Array(300));
  const [y] = double(device, "the all-reduce of w", [wide.add(1)], log);
  const state = new Variable(tensor(new Float32Array(300)));
  const z = y.add(1);
  state.assign(z.add(1));
  await device.flush();
  assertEquals((await state.data())[0], 4);
  await assertRejects(
    () => z.data(),
    Error,
    "the all-reduce of w, which it is computed from, runs",
  );
});

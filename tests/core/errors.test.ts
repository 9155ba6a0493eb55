/** Bad input to core: each a clear error that names the operation, the need and the fact. */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import {
  attention,
  concatenate,
  crossEntropy,
  einsum,
  embedding,
  full,
  Generator,
  grad,
  init,
  layerNorm,
  tensor,
  uniform,
  useDevice,
  Variable,
  where,
  zeros,
} from "@graft/ml";

const cases: [string, () => unknown, RegExp][] = [
  ["shapes", () => zeros([2, 3]).add(zeros([4])), /add: shapes must broadcast.*\[2, 3\] and \[4\]/],
  ["dtypes", () => zeros([2]).add(zeros([2], { dtype: "i32" })), /add: .*f32\[2\] and i32\[2\]/],
  ["matmul sizes", () => zeros([2, 3]).matmul(zeros([4, 5])), /matmul: .*\[2, 3\] and \[4, 5\]/],
  [
    "matmul dtype",
    () => zeros([2, 2], { dtype: "i32" }).matmul(zeros([2, 2], { dtype: "i32" })),
    /matmul: .*f32.*i32/,
  ],
  ["axis", () => zeros([2, 3]).sum(2), /sum: axis must be .* \[-2, 2\).*got 2/],
  ["axis twice", () => zeros([2, 3]).sum([0, -2]), /sum: axis 0 is named twice/],
  ["fractional axis", () => zeros([2]).sum(0.5), /sum: axis must be an integer/],
  ["reshape", () => zeros([2, 3]).reshape(4), /reshape: \[2, 3\] has 6 elements, no shape \[4\]/],
  ["permute", () => zeros([2, 3]).permute(0, 0), /permute: needs each dimension of \[2, 3\] once/],
  ["expand", () => zeros([2, 3]).expand(2, 4), /expand: /],
  ["slice", () => zeros([2, 3]).slice(1, 1, 5), /slice: range 1 to 5 by 1 .*\[2, 3\]/],
  ["squeeze", () => zeros([2, 3]).squeeze(0), /squeeze: needs size 1/],
  ["select", () => zeros([2, 3]).select(0, 2), /select: index 2 is out of range/],
  ["whole numbers", () => zeros([2], { dtype: "i32" }).mul(0.5), /whole number.*i32.*0\.5/],
  ["sum of bool", () => zeros([2]).gt(0).sum(), /sum: needs numbers, got bool/],
  ["exp of i32", () => zeros([2], { dtype: "i32" }).exp(), /exp: needs dtype f32 .*got i32/],
  ["condition", () => where(zeros([2]), 1, 2), /where: needs a bool condition, got f32/],
  ["ragged rows", () => tensor([[1, 2], [3]]), /tensor: needs rows of one length/],
  ["uneven nesting", () => tensor([[1], 2]), /tensor: /],
  ["shape of data", () => tensor([1, 2, 3], { shape: [2, 2] }), /shape \[2, 2\] needs 4 .*got 3/],
  ["fractions as i32", () => tensor([1.5], { dtype: "i32" }), /i32 needs whole numbers, got 1\.5/],
  ["dtype's name", () => tensor([1], { dtype: "f64" as "f32" }), /needs one of .*got f64/],
  ["negative size", () => zeros([-1]), /whole numbers from 0 on, got \[-1\]/],
  ["concatenate", () => concatenate([zeros([2, 3]), zeros([3, 3])], 1), /concatenate: .*\[3, 3\]/],
  ["split", () => zeros([5]).split([2, 2]), /split: sizes \[2, 2\] must add up to 5/],
  ["top-k", () => zeros([5]).topK(6), /topK: needs k in \[1, 5\]/],
  ["clamp", () => zeros([5]).clamp(1, 0), /clamp: needs low ≤ high/],
  ["einsum", () => einsum("ij,jk", zeros([2, 2]), zeros([2, 2])), /einsum: needs an equation/],
  ["einsum sizes", () => einsum("i,i->", zeros([2]), zeros([3])), /"i" has size 2 and 3/],
  [
    "token id",
    () => embedding(zeros([10, 4]), tensor(new Int32Array([1, 10]))),
    /index 10 at position 1 of \[2\] is not in \[0, 10\)/,
  ],
  [
    "index dtype",
    () => zeros([10, 4]).take(zeros([2])),
    /take: needs indices of dtype i32, got f32/,
  ],
  [
    "target",
    () => crossEntropy(zeros([2, 5]), tensor(new Int32Array([1, 7]))),
    /target 7 at position 1 is not in \[0, 5\)/,
  ],
  [
    "attention",
    () => attention(zeros([1, 3, 2, 4]), zeros([1, 2, 2, 4]), zeros([1, 2, 2, 4])),
    /attention: .*multiple/,
  ],
  ["layerNorm", () => layerNorm(zeros([2, 3]), zeros([4]), null), /layerNorm: .*\[2, 3\].*\[4\]/],
  ["seed", () => new Generator(-1), /seed is a whole number/],
  ["uniform", () => uniform([2], { low: 1, high: 0 }), /uniform: needs low ≤ high/],
  [
    "assign",
    () => new Variable(zeros([2])).assign(zeros([3])),
    /assign: needs shape \[2\], got \[3\]/,
  ],
  ["update", () => new Variable(zeros([2, 4])).update(zeros([2, 2]), 1, 3), /update: .*from 3 on/],
  [
    "vector loss",
    () => new Variable(zeros([2]), { requiresGrad: true }).backward(),
    /backward: needs a scalar/,
  ],
  ["all frozen", () => new Variable(zeros([2])).sum().backward(), /every parameter frozen/],
  [
    "requiresGrad of i32",
    () => new Variable(zeros([2], { dtype: "i32" }), { requiresGrad: true }),
    /floating-point/,
  ],
  ["grad by an intermediate", () => {
    const w = new Variable(zeros([2]), { requiresGrad: true });
    const h = w.mul(2);
    return grad(h.sum(), [h]);
  }, /grad: needs variables/],
];

Deno.test("errors: bad calls say what is wrong", async (t) => {
  const device = await init({ device: "cpu" });
  for (const [name, call, message] of cases) {
    await t.step(name, () => {
      const error = assertThrows(call) as Error;
      assert(message.test(error.message), `got: ${error.message}`);
    });
  }
  await t.step("item of many", async () => {
    await assertRejects(
      () => zeros([2]).item(),
      RangeError,
      "item: needs a tensor with one element",
    );
  });
  await device.close();
});

Deno.test("errors: devices", async () => {
  useDevice(null);
  assertThrows(() => zeros([2]), Error, "call `await init()` first");
  const cpu = await init({ device: "cpu" });
  const onCpu = zeros([2]);
  const meta = await init({ device: "meta" });
  assertThrows(() => zeros([2]).add(onCpu), TypeError, "add: needs its inputs on one device");
  await assertRejects(() => zeros([2]).data(), Error, "meta device has a shape but no values");
  // 175 billion elements, and no memory.
  assertEquals(new Variable(full([350_000, 500_000], 1)).size, 175e9);
  await meta.close();
  await cpu.close();
  useDevice(cpu);
  await assertRejects(() => onCpu.add(1).data(), Error, "closed");
  useDevice(null);
});

Deno.test("errors: without an adapter, what to install", async () => {
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: [
      "eval",
      "--no-check",
      `import { init } from "@graft/ml"; await init({ device: "webgpu" })`,
    ],
    cwd: new URL("../../", import.meta.url),
    // Drivers that are not there: as on a machine without any.
    env: {
      DENO_WEBGPU_BACKEND: "vulkan",
      VK_DRIVER_FILES: "/no/driver.json",
      VK_ICD_FILENAMES: "/no/driver.json",
    },
  }).output();
  const message = new TextDecoder().decode(stderr);
  assert(!success && /webgpu: no adapter\..*mesa-vulkan-drivers/s.test(message), message);
});

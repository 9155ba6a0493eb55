/**
 * Activation functions by their Hugging Face names.
 *
 * @module
 */

import type { Tensor } from "../core/mod.ts";

const tanhGelu = (x: Tensor): Tensor => x.gelu("tanh");

const ACTIVATIONS: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  gelu: (x) => x.gelu(),
  gelu_new: tanhGelu,
  gelu_pytorch_tanh: tanhGelu,
  gelu_fast: tanhGelu,
  relu: (x) => x.relu(),
  silu: (x) => x.silu(),
  swish: (x) => x.silu(),
  tanh: (x) => x.tanh(),
};

/**
 * The activation that a `config.json` names, such as "gelu" or "gelu_new". `what` is for the message.
 *
 * Throws a `TypeError` that lists the known names.
 *
 * @example
 * ```ts
 * import { init, tensor } from "@graft/ml";
 * import { activation } from "@graft/ml/nn";
 *
 * await init({ device: "cpu" });
 * console.log(await activation("relu")(tensor([-1, 2])).data()); // Float32Array [0, 2]
 * ```
 */
export function activation(name: string, what = "activation"): (x: Tensor) => Tensor {
  if (Object.hasOwn(ACTIVATIONS, name)) return ACTIVATIONS[name];
  throw new TypeError(
    `${what} must be one of ${Object.keys(ACTIVATIONS).join(", ")}, is ${JSON.stringify(name)}`,
  );
}

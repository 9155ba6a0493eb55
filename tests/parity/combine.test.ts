/** Combined adapters against PEFT's: see peft_combine.py. */

import { init, useDevice } from "@graft/ml";
import { LlamaForCausalLM } from "@graft/ml/nn";
import {
  addWeightedAdapter,
  type CombinationOptions,
  deleteAdapter,
  loadAdapter,
  type LoraLinear,
} from "@graft/ml/peft";
import { golden, here, near } from "./golden.ts";

const pruned = { density: 0.3, rank: 16 };
const COMBINATIONS: Readonly<Record<string, Omit<CombinationOptions, "name">>> = {
  cat: { type: "cat" },
  svd: { type: "svd" },
  svd_3: { type: "svd", rank: 3 },
  ties: { type: "ties", ...pruned },
  ties_frequency: { type: "ties_svd", majoritySign: "frequency", ...pruned },
  magnitude_prune: { type: "magnitude_prune", ...pruned },
};

Deno.test("parity: combinations of ΔW are PEFT's", async () => {
  const device = await init({ device: "cpu" });
  const model = await LlamaForCausalLM.fromPretrained(`${here}tiny_llama`);
  for (const name of ["a", "b"]) await loadAdapter(model, `${here}peft_combine/${name}`, { name });
  await using file = await golden("peft_combine/golden.safetensors");
  const layers = {
    "layers.0.self_attn.q_proj": model.model.layers[0].self_attn.q_proj,
    "layers.1.self_attn.v_proj": model.model.layers[1].self_attn.v_proj,
  };
  for (const [name, options] of Object.entries(COMBINATIONS)) {
    await addWeightedAdapter(model, ["a", "b"], [0.7, -0.4], { name, ...options });
    for (const [path, layer] of Object.entries(layers)) {
      const delta = (layer as LoraLinear).adapters.get(name)!.update();
      near(`${name}/${path}`, await delta.data(), await file.floats(`${name}/${path}`), 1e-5);
    }
    deleteAdapter(model, name);
  }
  // An element that nothing adds to is nothing.
  await addWeightedAdapter(model, ["a", "b"], [0, 0], { name: "none", type: "ties" });
  const none = (layers["layers.0.self_attn.q_proj"] as LoraLinear).adapters.get("none")!;
  near("none", await none.update().data(), new Float32Array(32 * 32), 1e-7);
  await device.close();
  useDevice(null);
});
